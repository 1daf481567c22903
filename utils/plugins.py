"""Python files of the user's own, which are imported so that what they define registers itself."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from utils.errors import OptionError, UserError, brief

FOLDER = Path(__file__).parents[1] / "plugins"  # whose files are always imported


def load_plugins(files: str) -> str:
    """Import plugins that have not been imported yet: those of `plugins/`, then those given.

    Args:
        files: joined by commas.

    Returns:
        The files given, as absolute paths.

    Raises:
        OptionError: a file is missing or does not import; names the file and the line.
    """
    for path in sorted(FOLDER.glob("*.py")):
        _load(path)
    given = [Path(file).absolute() for file in files.split(",") if file]
    for path in given:
        if not path.is_file():
            raise OptionError(f"--plugin {path}: no such file")
        _load(path)
    return ",".join(map(str, given))


def _load(path: Path) -> None:
    name = f"plugin_{path.stem}"
    if (known := sys.modules.get(name)) is not None:
        if Path(str(known.__file__)) != path:
            raise OptionError(f"--plugin {path}: another plugin has the same name: {known.__file__}")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"--plugin {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        del sys.modules[name]
        raise OptionError(f"--plugin {path}: {error}") from None
    except Exception as error:  # whatever the file raises
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = lines[-1] if lines else getattr(error, "lineno", "?")
        raise OptionError(f"--plugin {path}, line {where}: {type(error).__name__}: {brief(error)}") from None
