"""Train RDE: text-to-image person re-identification under noisy correspondence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from options import parse, resolve
from utils.errors import OptionError
from utils.log import status
from utils.options import display_value, forbidden_changes
from utils.program import run_program
from utils.run_folder import RunFolder


def main(argv: Sequence[str]) -> RunFolder | None:
    """Resolve the options of a new or resumed run, and train; returns the run, or None with `--test`."""
    given = parse(str(__doc__), argv)
    options = None if _resumes(given) else resolve(given)

    status("loading PyTorch")
    from assembly import broadcast_from_main, train  # imports torch, only after checking the flags

    if options is not None:
        return train(options, None)
    checkpoint = broadcast_from_main(lambda: _checkpoint_to_resume(given))
    run = RunFolder(checkpoint.parent)
    options, old_options = resolve({**given, "config": str(run.config)}), resolve({"config": str(run.config)})
    if changed := forbidden_changes(options, old_options):
        new, old = display_value(options[changed[0]]), display_value(old_options[changed[0]])
        raise OptionError(f"--{changed[0]} {new}: the run to resume has {old}")
    return train(options, run, checkpoint)


def _resumes(given: Mapping[str, Any]) -> bool:
    return "resume" in given or bool(given.get("resume_ckpt_file"))


def _checkpoint_to_resume(given: Mapping[str, Any]) -> Path:
    """The last.pth that --resume or --resume_ckpt_file refers to, which may not exist yet."""
    if "config" in given:
        raise OptionError("--config: a run is resumed with its own configuration, drop this flag")
    if given.get("resume") and given.get("resume_ckpt_file"):
        raise OptionError("--resume_ckpt_file: give either this or a folder with --resume, not both")
    if given.get("resume_ckpt_file"):
        if not Path(given["resume_ckpt_file"]).is_file():
            raise OptionError(f"no checkpoint {given['resume_ckpt_file']} to resume from")
        return Path(given["resume_ckpt_file"])
    newest = RunFolder.newest_unfinished
    run = RunFolder(Path(given["resume"])) if given["resume"] else newest(Path(resolve(given).output_dir))
    return run.checkpoint_to_resume()


if __name__ == "__main__":
    run_program(main)
