"""The examples of docs/extending.md, verbatim: each is one file, and works in every command."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import assembly
import test as evaluation_root
import train as training_root
from datasets.noise import draw_permutation
from model.settings import BACKBONES, HEADS
from options import parse, resolve
from solver.settings import CORRESPONDENCES, OBJECTIVES
from tests import datasets_on_disk
from tests.test_training import SMALL, records, train_killed_and_resumed
from tools.search import __main__ as search
from utils import plugins
from utils.errors import UserError
from utils.run_folder import RunFolder

PAGE = Path(__file__).parents[1] / "docs/extending.md"
EXAMPLES = {
    name: f"# {name}\n{code}" for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.S)
}
SMALL = [*SMALL, "--img_size", "48", "16", "--num_epoch", "2"]
FLAGS = {
    "soft_triplet.py,attended.py,identity_loss.py,lowest.py": [
        *["--loss_names", "SoftTriplet+person", "--sharpness", "30", "--heads", "BGE+TSE+ATT"],
        *["--trained", "BGE+TSE+ATT", "--division", "lowest", "--kept", "0.6"],
    ],
    "csv_people.py,mine.py": ["--dataset_name", "CSVPeople", "--noisy_rate", "0", "--loss_names", "Mine"],
    "small_clip_backbone.py": ["--backbone", "small_clip"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The examples and the data: RSTPReid's format, and the same as a CSV file."""
    folder = tmp_path_factory.mktemp("extending")
    for name, code in EXAMPLES.items():
        (folder / name).write_text(code, encoding="utf-8")
    datasets_on_disk.write(folder, "RSTPReid")
    entries = json.loads((folder / "RSTPReid/data_captions.json").read_text())
    (folder / "CSVPeople").mkdir()
    (folder / "CSVPeople/imgs").symlink_to(folder / "RSTPReid/imgs")
    with (folder / "CSVPeople/captions.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["person", "picture", "sentence", "split"])
        for entry in entries:
            rows.writerows([entry["id"], entry["img_path"], c, entry["split"]] for c in entry["captions"])
    return folder


def test_the_page_has_these_examples():
    assert sorted(EXAMPLES) == sorted(",".join(FLAGS).split(","))


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
@pytest.mark.parametrize("names", FLAGS)
def test_examples_are_trained_killed_resumed_tested_indexed_and_queried(folder, tmp_path, monkeypatch, names):
    files = ",".join(str(folder / name) for name in names.split(","))
    given = ["--plugin", files, "--dataset_name", "RSTPReid", "--root_dir", str(folder), *SMALL]
    given += ["--noisy_rate", "0.5", *FLAGS[names]]
    if "csv_people.py" not in names:  # it has no noise
        np.save(folder / "noise.npy", draw_permutation(24, 0.5))
        given += ["--noisy_file", str(folder / "noise.npy")]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    training_root.main([*given, "--output_dir", str(whole)])
    train_killed_and_resumed([*given, "--output_dir", str(cut)], cut, monkeypatch)
    (run_dir,), (resumed,) = (list(logs.glob("*/*")) for logs in (whole, cut))
    assert records(run_dir) == records(resumed)
    first, second = (torch.load(run / "last.pth", weights_only=True)["model"] for run in (run_dir, resumed))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    own = RunFolder(run_dir).test_metrics()
    evaluation_root.main([str(run_dir)])
    assert RunFolder(run_dir).test_metrics() == own

    monkeypatch.chdir(tmp_path)
    search.main(["index", "--run", str(run_dir), "--gallery", str(folder / "RSTPReid/imgs"), "--device", "cpu"])
    search.main(["query", "a man in a red coat", "--device", "cpu", "--out", str(tmp_path / "found")])
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert len(found["results"]) == 10


SHARP = """
from dataclasses import dataclass
from model.settings import HEADS
from model.heads.base import Head
from utils.settings import option, settings


@settings("mine")
@dataclass(frozen=True)
class SharpSettings:
    sharp: float = option(1.0, "sharpness", above=0)


@HEADS.register("SHARP")
class Sharp(Head):
    Settings = SharpSettings
    used = []

    def __init__(self, width, tokens, settings):
        super().__init__(width, tokens)
        self.used.append(settings.sharp)

    def forward(self, tokens):
        return tokens.features[:, 0].float()
"""


@pytest.mark.usefixtures("small_figures")
def test_a_run_is_tested_with_its_own_settings_of_a_head(root, tmp_path):
    (tmp_path / "sharp.py").write_text(SHARP)
    given = ["--plugin", str(tmp_path / "sharp.py"), "--heads", "BGE+SHARP", "--trained", "BGE+SHARP", "--sharp", "8"]
    options = resolve(parse("", [*SMALL, *given, "--dataset_name", "RSTPReid", "--root_dir", str(root)]))
    torch.save({"model": assembly.build(options).published_state()}, tmp_path / "best.pth")
    RunFolder(tmp_path).write_config(options, {})
    used = HEADS["SHARP"].used
    used.clear()
    evaluation_root.main([str(tmp_path), "--device", "cpu"])
    assert used == [8, 8], "of images and captions"


TOKENS = """
import torch
from solver.objectives.base import TokenObjective
from solver.settings import OBJECTIVES


@OBJECTIVES.register("alike")
class Alike(TokenObjective):
    def __init__(self, settings, sizes):
        super().__init__(settings, sizes)
        self.project = torch.nn.Linear(sizes.features, 4)

    def forward(self, tokens):
        image, text = (self.project(part).mean(dim=1) for part in (tokens.image, tokens.text))
        return (image - text).square().sum(dim=1, keepdim=True)

    def reduce(self, rows, weight):
        return (weight * rows[:, 0]).sum()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
@pytest.mark.parametrize("precision", ["fp16_weights", "bf16"])
def test_examples_are_trained_in_half_precision(folder, tmp_path, precision):
    """Their layers and inputs stay float32."""
    (folder / "alike.py").write_text(TOKENS)
    files = ",".join(str(folder / name) for name in ("alike.py", "attended.py", "identity_loss.py"))
    given = ["--plugin", files, "--dataset_name", "RSTPReid", "--root_dir", str(folder), *SMALL]
    given += ["--loss_names", "TAL+person+alike", "--heads", "BGE+TSE+ATT", "--trained", "BGE+TSE+ATT"]
    given += ["--output_dir", str(tmp_path / "logs"), "--noisy_rate", "0", "--text_length", "24", "--num_epoch", "1"]
    training_root.main([*given, "--precision", precision])
    (file,) = tmp_path.glob("logs/*/*/last.pth")
    weights = torch.load(file, weights_only=True)["model"]
    types = {name: value.dtype for name, value in weights.items() if "project" in name or "classifier" in name}
    assert len(types) == 9  # CLIP's projection, and weight and bias of the head's two layers and of either objective's
    half = torch.float16 if precision == "fp16_weights" else torch.float32
    assert types.pop("base_model.text_projection") == half
    assert set(types.values()) == {torch.float32}


def test_fp16_weights_are_refused_for_a_backbone_without_support(folder):
    given = ["--plugin", str(folder / "small_clip_backbone.py"), "--backbone", "small_clip", *SMALL]
    given += ["--dataset_name", "RSTPReid", "--root_dir", str(folder), "--precision", "fp16_weights"]
    with pytest.raises(UserError, match="--precision fp16_weights: this backbone does not support it"):
        training_root.main([*given, "--noisy_rate", "0"])


LOSS = """
import torch
from solver.objectives.base import PairwiseObjective
from solver.settings import OBJECTIVES


@OBJECTIVES.register("{name}")
class Bad(PairwiseObjective):
    def per_pair(self, similarity, pids):
        return {value}
"""
OTHER = """
import torch
from solver.objectives.base import Objective
from solver.settings import OBJECTIVES


@OBJECTIVES.register("vector")
class Bad(Objective):
    def forward(self, batch):
        return batch.weight
"""
HEAD = """
import torch
from model.settings import BACKBONES, HEADS
from model.heads.base import Head


@HEADS.register("{name}")
class Bad(Head):
    def forward(self, tokens):
        return tokens.features[:, 0{more}].float()
"""
WIDTHS = """
from model.settings import BACKBONES, HEADS
from model.heads.base import Head


@HEADS.register("twowidths")
class Bad(Head):
    def __init__(self, width, tokens, settings=None):
        super().__init__(width, tokens)
        self.width = tokens
"""
DIVISION = """
import numpy as np
from solver.correspondence.base import Correspondence, Verdict
from solver.settings import CORRESPONDENCES


@CORRESPONDENCES.register("{name}")
class Bad(Correspondence):
    def decide(self, losses, truly_clean, epoch):
        return Verdict({value})
"""


def forget(plugin: str) -> None:
    """Unload plugins whose names start with `plugin`, so that this process has the state of a new one."""
    for registry in (OBJECTIVES, HEADS, CORRESPONDENCES, BACKBONES):
        for name in registry._found.keys() - registry._modules.keys():
            if registry._found[name].__module__.startswith(f"plugin_{plugin}"):
                del registry._found[name]
    for name in [name for name in plugins._loaded if name.startswith(plugin)]:
        del plugins._loaded[name]


@pytest.fixture
def own_registries():
    """Remove what a test's plugin registers."""
    yield
    forget("bad_")


STATE = """
    def state_dict(self):
        return {"seen": np.ones(3)}
"""
SHORT = ["--num_epoch", "1", "--warmup_epochs", "0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "flags", "message"),
    [
        (
            LOSS.format(name="scalar", value="similarity.mean()"),
            "--loss_names scalar",
            r"objective scalar: per_pair must give \(8,\) losses, found shape \(\)",
        ),
        (
            LOSS.format(name="nothing", value="None"),
            "--loss_names nothing",
            r"objective nothing: per_pair must give \(8,\) losses, found NoneType",
        ),
        (
            LOSS.format(name="detached", value="similarity.detach().sum(dim=1)"),
            "--loss_names detached",
            "objective detached: per_pair gives losses without a gradient, nothing would be trained",
        ),
        (OTHER, "--loss_names TAL+vector", r"objective vector: expected a scalar, found shape \(8,\)"),
        (OTHER, "--loss_names vector", "--division ccd: needs a pairwise objective, such as TAL, in --loss_names"),
        (
            HEAD.format(name="narrow", more=", :9"),
            "--heads BGE+narrow --trained BGE",
            r"head narrow, image: expected shape \(\d+, 32\), found \(\d+, 9\)",
        ),
        (
            WIDTHS,
            "--heads BGE+twowidths --trained BGE",
            r"head twowidths: images and captions must have the same width, found",
        ),
        (
            DIVISION.format(name="nan", value="np.full(len(truly_clean), np.nan)"),
            "--division nan",
            r"--division nan: expected a Verdict with 24 finite weights ≥ 0",
        ),
        (
            DIVISION.format(name="negative", value="-np.ones(len(truly_clean), np.float32)"),
            "--division negative",
            r"--division negative: expected a Verdict with 24 finite weights ≥ 0",
        ),
        (
            DIVISION.format(name="array", value="np.ones(len(truly_clean), np.float32)") + STATE,
            "--division array",
            r"--division array: its state_dict may hold only tensors and plain values",
        ),
        (
            HEAD.format(name="f16", more="").replace("float", "half"),
            "--heads BGE+f16 --trained BGE",
            "must be float32",
        ),
        (HEAD.format(name="half", more=""), "--heads BGE+half --trained BGE", "--heads: half is taken"),
        (
            LOSS.format(name="unused", value="0") + OTHER.replace('"vector"', '"BGE"'),
            "--loss_names TAL+BGE",
            r"--loss_names TAL\+BGE: BGE is taken",
        ),
        (OTHER.replace('"vector"', '"keys"'), "--loss_names TAL+keys", "keys is taken"),
        (
            OTHER.replace('"vector"', '"typo"').replace("batch.weight", 'batch.image["BEG"].sum()'),
            "--loss_names TAL+typo",
            r"needs the embedding BEG, and the model's --heads are BGE\+TSE",
        ),
        (
            HEAD.format(name="dropout", more="")
            + "\n    def __init__(self, *given):\n        super().__init__(*given)\n"
            + "        self.dropout = torch.nn.Dropout(0.5)\n",
            "--heads BGE+dropout --trained BGE --grad_accum 2",
            r"--grad_accum: heads.dropout.image.dropout \(Dropout\) must see a whole batch",
        ),
        (
            DIVISION.format(name="few", value="np.ones(3, np.float32)"),
            "--division few",
            r"--division few: expected a Verdict with 24 finite weights ≥ 0",
        ),
        (
            HEAD.format(name="third", more=""),
            "--trained BGE+third",
            r"--trained BGE\+third: 'third' is not one of --heads",
        ),
        (HEAD.format(name="fourth", more=""), "--heads BGE+fifth", r"--heads BGE\+fifth: choose from BGE, TSE"),
    ],
)
@pytest.mark.usefixtures("own_registries")
def test_mistakes_in_plugins_are_one_line_errors(folder, tmp_path, code, flags, message):
    file = tmp_path / f"bad_{abs(hash((code, flags)))}.py"
    file.write_text(code)
    given = ["--plugin", str(file), "--dataset_name", "RSTPReid", "--root_dir", str(folder), *SMALL, *SHORT]
    with pytest.raises(UserError, match=message) as caught:
        training_root.main([*given, "--noisy_rate", "0", "--output_dir", str(tmp_path), *flags.split()])
    assert "\n" not in str(caught.value)


DROPOUT = """
import torch
from torch import nn
from model.settings import BACKBONES
from model.backbones.clip import Clip
from model.settings import BACKBONES, HEADS
from model.heads.base import Head
from solver.correspondence.base import Correspondence, Verdict
from solver.settings import CORRESPONDENCES


@HEADS.register("NOISY")
class Noisy(Head):
    def __init__(self, width, tokens, settings=None):
        super().__init__(width, tokens)
        self.drop = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.5))

    def forward(self, tokens):
        return self.drop(tokens.features[:, 0]).float()


@BACKBONES.register("frozen")
class Frozen(Clip):
    def __init__(self, config):
        super().__init__(config)
        self.visual.requires_grad_(False)
        self.adapter = nn.Linear(self.width, self.width)


@CORRESPONDENCES.register("moving")
class Moving(Correspondence):
    state = None

    def decide(self, losses, truly_clean, epoch):
        loss = torch.from_numpy(sum(losses.values()))
        self.state = loss if self.state is None else 0.5 * (self.state + loss)
        return Verdict((self.state <= self.state.median()).float().numpy())

    def state_dict(self):
        return {"state": self.state}

    def load_state_dict(self, state):
        self.state = state["state"]
"""


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
def test_random_frozen_and_stateful_plugins_resume_exactly_and_may_move(folder, tmp_path, monkeypatch):
    plugin = tmp_path / "draws.py"
    plugin.write_text(DROPOUT)
    given = ["--plugin", str(plugin), "--dataset_name", "RSTPReid", "--root_dir", str(folder), *SMALL]
    given += ["--noisy_rate", "0", "--heads", "BGE+NOISY", "--trained", "BGE+NOISY", "--backbone", "frozen"]
    given += ["--division", "moving", "--num_epoch", "3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    training_root.main([*given, "--output_dir", str(whole)])
    train_killed_and_resumed([*given, "--output_dir", str(cut)], cut, monkeypatch)
    (run_dir,), (resumed,) = (list(logs.glob("*/*")) for logs in (whole, cut))
    first, second = (torch.load(run / "last.pth", weights_only=True)["model"] for run in (run_dir, resumed))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    start = torch.load(run_dir / "best.pth", weights_only=True)["model"]
    assert torch.equal(start["base_model.visual.proj"], first["base_model.visual.proj"]), "it is frozen"

    (tmp_path / "new").mkdir()
    moved, command = plugin.rename(tmp_path / "new/draws.py"), [str(run_dir), "--device", "cpu"]
    forget("draws")
    evaluation_root.main(command)  # with the copy in the run's folder
    (run_dir / "draws.py").unlink()
    forget("draws")
    evaluation_root.main([*command, "--plugin", str(moved)])
    forget("draws")
    with pytest.raises(UserError, match=r"draws.py: no such file; if it has moved, pass its new path with --plugin"):
        evaluation_root.main(command)


@pytest.mark.slow
@pytest.mark.usefixtures("small_figures")
def test_a_frozen_tower_trains_with_grad_accum(folder, tmp_path):
    plugin = tmp_path / "freezes.py"
    plugin.write_text(re.sub('"(NOISY|moving|frozen)"', r'"\1_2"', DROPOUT))
    given = ["--plugin", str(plugin), "--dataset_name", "RSTPReid", "--root_dir", str(folder), *SMALL, *SHORT]
    given += ["--noisy_rate", "0", "--backbone", "frozen_2", "--grad_accum", "2"]
    training_root.main([*given, "--output_dir", str(tmp_path / "logs")])
