"""Exporting: which folders it may replace, and the model card."""

from __future__ import annotations

import pytest

from tools import export
from utils.errors import OptionError


@pytest.mark.parametrize(
    ("there", "refused"),
    [
        (["README.md"], True),
        (["configs.yaml", "last.pth"], True),
        (["best.pth", "model.safetensors"], True),
        (["model.safetensors", "test_metrics.json"], False),
        ([], False),
    ],
)
def test_only_an_earlier_export_is_replaced(tmp_path, there, refused):
    out = tmp_path / "out"
    out.mkdir()
    for name in there:
        (out / name).write_text("mine")
    message = f"--out {out}: holds files that are not an earlier export's" if refused else "configs.yaml can't be read"
    with pytest.raises(OptionError, match=message):
        export.main([str(tmp_path / "run"), "--out", str(out)])
    assert all((out / name).read_text() == "mine" for name in there)
