"""The likely encoding of a text file that is not UTF-8."""

from __future__ import annotations

from pathlib import Path


def not_utf8(file: Path) -> str:
    """Message for a file that could not be decoded: its likely encoding, and what to do."""
    return f"{file} is not UTF-8 but {_encoding(file.read_bytes())}: convert it to UTF-8"


def _encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "seems to be UTF-16"
    try:
        content.decode("gbk")
    except UnicodeDecodeError:
        return "binary or in another encoding"
    return "seems to be GBK (iconv -f GBK -t UTF-8)"
