"""Export a model: inference weights, configuration and model card.

    python -m tools.export RUN_DIR
    python -m tools.export RUN_DIR --onnx    # also image.onnx and text.onnx

`test.py` and `python -m tools.search` accept the exported folder in place of a run's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from model.weights import model_from_checkpoint
from options import resolve_run
from tools.model_card import model_card
from utils.checkpoints import epoch_of
from utils.errors import OptionError
from utils.files import atomic_write, write_text
from utils.options import add_plugin, command_parser, parse
from utils.plugins import plugin_files
from utils.program import run_program
from utils.run_folder import CHECKPOINTS, EXPORTED, RunFolder
from utils.settings import FLAGS


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = command_parser("tools.export", __doc__)
    add_plugin(parser)
    parser.add_argument("run_dir", help="a run folder, ours or the authors'")
    parser.add_argument("--checkpoint", default="best.pth", help="checkpoint to export (default: %(default)s)")
    parser.add_argument("--out", help="folder to write (default: RUN_DIR/export)")
    parser.add_argument("--onnx", action="store_true", help="also write both towers with their heads as ONNX")
    return parser


def main(argv: Sequence[str]) -> None:
    """Write weights, configuration and model card."""
    args = parse(build_parser(), argv)
    run_dir = Path(args["run_dir"])
    if Path(args["checkpoint"]).name != args["checkpoint"]:
        raise OptionError(
            f"--checkpoint {args['checkpoint']}: must be the name of a file in {run_dir}, such as last.pth"
        )
    file = run_dir / args["checkpoint"]
    out = Path(args["out"] or run_dir / "export")
    if out.resolve() == run_dir.resolve():
        raise OptionError(f"--out {out}: must not be the run folder itself")
    _check_replaceable(out)
    run = RunFolder(run_dir)
    options = resolve_run(run.config, {})
    metrics = run.test_metrics().get(file.name, {})
    print(f"reading {file} …", flush=True)
    model = model_from_checkpoint(file, options.of)
    about = run.facts()
    flags = _flags({"dataset_name": options.dataset_name, **run.flags()})
    epoch = epoch_of(file)
    card = model_card(flags, about, metrics, (file.name, epoch))
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.published_state().items()}
    metadata = {"format": "pt", "towers": json.dumps(model.towers()), "backbone": json.dumps(options.backbone)}
    metadata |= {} if epoch is None else {"epoch": str(epoch)}
    # Written first: the weights mark the folder as an export, which may be replaced after an interruption.
    with atomic_write(out / EXPORTED) as partial:
        partial.write_bytes(save(weights, metadata))
    facts = {"git_revision": about.get("git_revision", "unknown"), "towers": model.towers()}
    plugins = plugin_files(options.plugin)
    RunFolder(out).copy_files([*plugins, *model.backbone.files])
    RunFolder(out).write_config(flags | {"plugin": ",".join(file.name for file in plugins)}, facts)
    write_text(out / "README.md", card)
    onnx_files = []
    if args["onnx"]:
        from tools.onnx_towers import write_towers
        from tools.search.encode import fingerprint

        onnx_files = [file.name for file in write_towers(model, options, fingerprint(model, options), out)]
    size = (out / EXPORTED).stat().st_size / 1e6
    print(f"wrote {out}: {', '.join((f'{EXPORTED} ({size:.1f} MB)', 'configs.yaml', 'README.md', *onnx_files))}")


def _check_replaceable(out: Path) -> None:
    """Check that a folder is new, empty, or an earlier export, possibly interrupted.

    Raises:
        OptionError: it holds other files, or is a run folder.
    """
    names = {path.name.removesuffix(".partial") for path in out.iterdir()} if out.is_dir() else set()
    if names and (EXPORTED not in names or names.intersection(CHECKPOINTS)):
        raise OptionError(f"--out {out}: holds files that are not an earlier export's; give a new folder")


def _flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that define the run, without those about location and speed; files by name only."""
    flags = {name: FLAGS[name] for name in config if name in FLAGS and name != "test"}
    return {
        name: Path(config[name]).stem if flag.path and Path(config[name]).is_absolute() else config[name]
        for name, flag in flags.items()
        if flag.path is not True and not flag.resumable
    }


if __name__ == "__main__":
    run_program(main)
