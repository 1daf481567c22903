"""Downloading a file once, with checksum verification."""

from __future__ import annotations

import hashlib
import socket
import sys
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock
from torch.hub import download_url_to_file

from utils.errors import UserError

_TIMEOUT = 30  # seconds without receiving data


class DownloadError(UserError):
    """A download failed; the message says how to put the file in place by hand."""


def fetch(url: str, sha256: str, file: Path) -> Path:
    """Download `url` to `file` unless it exists. Among several processes one downloads while the others wait.

    Raises:
        DownloadError: no network, or a different SHA-256, also of an existing file.
    """
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                _download(url, sha256, file)
    with file.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != sha256:
        raise DownloadError(f"{file} is corrupted or a different file (SHA-256 {actual}, expected {sha256}): delete it")
    return file


def _download(url: str, sha256: str, file: Path) -> None:
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # else a network that drops packets would hang forever
    try:
        download_url_to_file(url, str(file), sha256, progress=sys.stderr.isatty())
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError if the hash differs
        raise DownloadError(
            f"{url} can't be fetched ({error}): download it elsewhere and put it at {file} (SHA-256 {sha256})"
        ) from None
    finally:
        socket.setdefaulttimeout(default)
