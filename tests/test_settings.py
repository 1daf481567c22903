"""Settings declare flags, registries declare names, and plugins extend both."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import test as evaluation_root
import train as training_root
from options import build_parser, parse, resolve
from solver.settings import OBJECTIVES, OptimizerSettings
from tests import published
from utils import settings
from utils.errors import OptionError
from utils.registry import Registry
from utils.settings import FLAGS, option

BEFORE = json.loads((published.GOLDEN / "flags.json").read_text())
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", BEFORE)
def test_flags_of_the_first_version_keep_their_meaning(name):
    """As in the former flag table, before settings declared them."""
    flag, before = FLAGS[name], BEFORE[name]
    default = list(flag.default) if isinstance(flag.default, tuple) else flag.default
    assert default == before["default"]
    assert type(default) is type(before["default"])
    if name != "trained":  # which may name any of --heads
        assert set(before["choices"]) <= set(flag.choices)
        assert bool(before["choices"]) == bool(flag.choices)
    assert {key: getattr(flag, key) for key in ("bounds", "length", "tested", "resumable")} == {
        key: before[key] for key in ("bounds", "length", "tested", "resumable")
    }
    given = vars(build_parser("").parse_args([]))
    assert not given, "only flags that are given override a configuration"


def test_help_lists_every_flag_and_its_headings_in_order():
    text = build_parser("what it does").format_help()
    for flag in FLAGS.values():
        assert f"--{flag.name} " in text or f"--{flag.name}," in text
    assert text.index("the run:") < text.index("data:") < text.index("model:") < text.index("loss and division:")


def test_test_py_describes_a_flag_as_train_py_does():
    helps = {action.dest: action.help for action in evaluation_root.build_parser()._actions}
    shared = helps.keys() & FLAGS.keys() - {"output_dir"}  # there, where to look for runs
    assert len(shared) == 8
    for name in shared:
        assert str(helps[name]).startswith(FLAGS[name].help)


def test_flags_are_parsed_without_torch():
    """So that `--help` and a mistyped flag are answered immediately."""
    program = "import sys, options; options.parse('', []); print({'torch', 'sklearn', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_options_give_typed_settings():
    options = resolve({"lr": 1e-4, "optimizer": "SGD"})
    assert options.of(OptimizerSettings) == OptimizerSettings(lr=1e-4, optimizer="SGD")
    assert options.lr == options["lr"]
    with pytest.raises(AttributeError):
        _ = options.learning_rate


def test_a_flag_belongs_to_one_settings_class():
    @dataclass(frozen=True)
    class Other:
        lr: float = option(1.0, "another rate")

    with pytest.raises(
        OptionError, match=r"--lr is declared twice: by solver.settings.OptimizerSettings and by .*Other"
    ):
        settings.settings("optimizer and schedule")(Other)
    assert FLAGS["lr"].default == 1e-5


def test_a_field_without_help_is_refused():
    @dataclass(frozen=True)
    class Bare:
        value: float = 1.0

    with pytest.raises(OptionError, match=r"Bare.value: declare it as option\(default, help\)"):
        settings.settings("the run")(Bare)


def test_an_invalid_default_is_refused():
    @dataclass(frozen=True)
    class Low:
        low_default: float = option(-1.0, "too low", above=0)

    @dataclass(frozen=True)
    class Text:
        text_default: float = option("abc", "no number")

    with pytest.raises(OptionError, match=r"Low.low_default, its default -1.0: must be above 0"):
        settings.settings("the run")(Low)
    with pytest.raises(OptionError, match=r"Text.text_default: declared as float, but its default is a str"):
        settings.settings("the run")(Text)


def test_a_registry_imports_lazily_and_names_the_choices():
    registry: Registry = Registry("thing", {"a": "json", "b": "no.such.module"})
    assert list(registry) == ["a", "b"]

    @registry.register("own")
    class Own:
        pass

    assert registry["own"] is Own
    assert list(registry) == ["a", "b", "own"]
    with pytest.raises(OptionError, match="thing c: choose from a, b, own"):
        _ = registry["c"]
    with pytest.raises(OptionError, match=r"test_settings.py registers thing own, which already exists: test_set"):
        registry.register("own")(type("Other", (), {}))
    with pytest.raises(OptionError, match="thing 'a b': names consist of letters"):
        registry.register("a b")


LOSS = """
from solver.objectives.base import PairwiseObjective
from solver.settings import OBJECTIVES


@OBJECTIVES.register("{name}")
class Mine(PairwiseObjective):
    def per_pair(self, similarity, pids):
        {body}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_that_name", r"line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1\ndef f(:\n", r"line 2: SyntaxError"),
        (
            LOSS.format(name="TAL", body="pass"),
            r"bad.py registers objective TAL, which already exists: triplet.py",
        ),
        (LOSS.format(name="a+b", body="pass"), r"objective 'a\+b': names consist of letters"),
        ("import sys\nsys.exit(3)", r"line 2: SystemExit: 3"),
        (None, r"no such file"),
    ],
)
def test_a_plugin_that_fails_to_import_is_a_one_line_error(tmp_path, text, message):
    file = tmp_path / "bad.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(OptionError, match=rf"--plugin {file}.*{message}") as caught:
        training_root.main(["--plugin", str(file)])
    assert "\n" not in str(caught.value)
    assert "plugin_bad" not in sys.modules


def test_a_plugins_flags_are_parsed_checked_and_listed(tmp_path):
    file = tmp_path / "a_plugin_with_flags.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom utils.settings import option, settings\n"
        '@settings("mine")\n@dataclass(frozen=True)\nclass Mine:\n'
        '    strength_of_mine: float = option(0.5, "how strong", low=0)\n'
    )
    try:
        given = parse("", ["--plugin", str(file), "--strength_of_mine", "0.25"])
        assert resolve(given).strength_of_mine == 0.25
        with pytest.raises(OptionError, match=r"--strength_of_mine -1\.0: must be at least 0"):
            resolve(given | {"strength_of_mine": -1.0})
        (tmp_path / "c.yaml").write_text(f"plugin: {file}\nstrength_of_mine: 0.75\n")
        given = parse("", ["--config", str(tmp_path / "c.yaml")])
        assert resolve(given).strength_of_mine == 0.75
        assert resolve(given).plugin == str(file)
        (tmp_path / "another_plugin.py").write_text("x = 1\n")
        given = parse("", ["--config", str(tmp_path / "c.yaml"), "--plugin", str(tmp_path / "another_plugin.py")])
        assert resolve(given).plugin == f"{file},{tmp_path / 'another_plugin.py'}", "all of them are kept"
        (tmp_path / "c.yaml").write_text("plugin: a_plugin_with_flags.py\nstrength_of_mine: 0.5\n")
        assert resolve(parse("", ["--config", str(tmp_path / "c.yaml")])).plugin == str(file), "relative to the file"
        assert "how strong (default: 0.5)" in build_parser("").format_help()
    finally:
        FLAGS.pop("strength_of_mine", None)


def test_built_in_objectives_are_known_by_name():
    names = {"TAL", "TRL", "TRL-S", "InfoNCE", "SDM", "sdm", "itc", "cmpm", "id", "mlm", "DECL", "CRCL"}
    assert names <= set(OBJECTIVES)  # another test's plugin may have added to them
    for name in names:
        assert OBJECTIVES[name].__module__.startswith("solver.objectives")
