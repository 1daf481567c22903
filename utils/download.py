"""Fetching a file once, its checksum verified."""

from __future__ import annotations

import hashlib
import socket
import sys
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock
from torch.hub import download_url_to_file

from utils.errors import UserError

_TIMEOUT = 30  # seconds without a byte


class DownloadError(UserError):
    """A file can't be fetched; the message says how to put it in place by hand."""


def fetch(url: str, sha256: str, file: Path) -> Path:
    """Download `url` to `file` unless it is there. Of several processes one downloads, the others wait.

    Raises:
        DownloadError: no network, or another content than `sha256`, also of a file that is there.
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                _download(url, sha256, file)
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise DownloadError(f"{file} is corrupted or a different file (SHA-256 {found}, expected {sha256}): delete it")
    return file


def _download(url: str, sha256: str, file: Path) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # a network that drops packets would be waited for without end
    try:
        download_url_to_file(url, str(file), sha256, progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:  # the last for another content
        raise DownloadError(
            f"{url} can't be fetched ({error}): download it elsewhere and put it at {file} (SHA-256 {sha256})"
        ) from None
    finally:
        socket.setdefaulttimeout(before)
