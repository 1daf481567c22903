"""Plugins: the user's Python files, imported so that their classes register themselves."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from utils.errors import OptionError, UserError, brief

FOLDER = Path(__file__).parents[1] / "plugins"  # its files are always imported
_loaded: dict[str, Path] = {}  # by stem


def load_plugins(files: str, beside: Path | None = None) -> str:
    """Import plugins that haven't been imported yet: those in `plugins/`, then `files`.

    A file that has moved since a run started is replaced by one of the same name that is already loaded, or in
    `beside`.

    Args:
        files: comma-separated paths.
        beside: the folder of the configuration that names them, to which relative paths refer.

    Returns:
        The given files as absolute paths.

    Raises:
        OptionError: a file is missing or fails to import; names the file and the line.
    """
    for path in sorted(FOLDER.glob("*.py")):
        _load(path)
    given = [_find(Path(file.strip()), beside) for file in files.split(",") if file.strip()]
    for path in given:
        _load(path)
    return ",".join(dict.fromkeys(map(str, given)))


def plugin_files(files: str) -> list[Path]:
    """The files in a string returned by `load_plugins`."""
    return [Path(file) for file in files.split(",") if file]


def _find(file: Path, beside: Path | None) -> Path:
    for place in (*([beside / file] if beside else []), file):
        if place.is_file():
            return place.absolute()
    if file.stem in _loaded:
        return _loaded[file.stem]
    if beside and (copy := beside / file.name).is_file():
        return copy.absolute()
    raise OptionError(f"--plugin {file}: no such file; if it has moved, pass its new path with --plugin")


def _load(path: Path) -> None:
    name = f"plugin_{path.stem}"
    if known := _loaded.get(path.stem):
        if known != path and known.read_bytes() != path.read_bytes():
            raise OptionError(f"--plugin {path}: another plugin has the same name: {known}")
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"--plugin {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for imports of files beside it
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        del sys.modules[name]
        raise OptionError(f"--plugin {path}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the file raises
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = lines[-1] if lines else getattr(error, "lineno", "?")
        what = error.msg if isinstance(error, SyntaxError) else brief(error)
        raise OptionError(f"--plugin {path}, line {where}: {type(error).__name__}: {what}") from None
    _loaded[path.stem] = path
