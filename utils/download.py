"""Fetching a file once: resumed where it broke off, its checksum verified before it is used."""

from __future__ import annotations

import hashlib
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

from utils.errors import UserError

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte


class DownloadError(UserError):
    """A file can't be fetched; the message says how to put it in place by hand."""


def fetch(url: str, sha256: str, file: Path) -> Path:
    """Download `url` to `file` unless it is there. Of several processes one downloads, the others wait.

    Raises:
        DownloadError: no network, or another content than `sha256`, also of a file that is there.
    """
    if file.is_file():
        return _verified(file, sha256)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with FileLock(f"{file}.lock"), partial.open("ab") as stream:
        if file.is_file():
            return _verified(file, sha256)
        try:
            _append(url, stream)
        except (OSError, HTTPException) as error:
            raise DownloadError(
                f"{url} can't be fetched ({error}): get the file by other means and put it at {file} (SHA-256 {sha256})"
            ) from None
        stream.flush()
        found = _digest(partial)
        if found != sha256:
            partial.unlink()
            raise DownloadError(f"{url} gave another file: SHA-256 {found}, expected {sha256}; nothing was kept")
        partial.rename(file)
    return file


def _verified(file: Path, sha256: str) -> Path:
    if (found := _digest(file)) != sha256:
        raise DownloadError(f"{file} is damaged or another file (SHA-256 {found}, expected {sha256}): delete it")
    return file


def _append(url: str, stream) -> None:
    """Fetch what is missing at the end of the file."""
    done = stream.tell()
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise
    with response:
        if done and response.status != 206:  # the server does not resume
            stream.truncate(0)
            done = 0
        total = int(response.headers.get("Content-Length") or 0) + done
        with tqdm(
            desc=url.rsplit("/", 1)[-1], total=total or None, initial=done, unit="B", unit_scale=True, disable=None
        ) as bar:
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
    if total and stream.tell() < total:
        raise OSError(f"the connection ended after {stream.tell():,} of {total:,} bytes; start again to go on")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
