"""One file from a server onto the disk: resumed where it broke off, and checked.

Of the standard library: pooch, which is made for this, does not resume, and deletes what it has when a download breaks.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from skinmtl.data.prepare.web import PATIENT, Broken, Patience, Stale, open_url, wait
from skinmtl.errors import InputError, Interrupted, ResourceError
from skinmtl.files import digest
from skinmtl.terminal import bar

logger = logging.getLogger(__name__)

BLOCK = 2**18  # bytes read at once


@dataclass(frozen=True)
class Remote:
    """A file on a server: where, how many bytes, and the checksum by the name that hashlib knows."""

    name: str
    url: str
    size: int | None
    kind: str
    digest: str


def fetch(remote: Remote, folder: Path, patience: Patience = PATIENT) -> Path:
    """Download a file unless it is there already; a `.part` beside it is resumed.

    The `.part` stays when the download fails or is stopped, with the server's ETag beside it, which decides whether it
    may be resumed: by Range and If-Range. A file whose checksum is wrong is never left under its name.

    Args:
        remote: the file on its server.
        folder: where it goes.
        patience: how long to wait for the server.

    Returns:
        The file in `folder`.

    Raises:
        InputError: the server refuses, redirects to where it must not, or sends something else than it lists.
        Interrupted: Ctrl-C.
        ResourceError: the disk is full.
    """
    path = folder / remote.name
    if path.is_file() and digest(path, remote.kind) == remote.digest:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = _Part(folder / f"{remote.name}.part")
    try:
        resumed = _get(remote, part, patience)
        if resumed and digest(part.path, remote.kind) != remote.digest:
            logger.warning("%s: its %s is wrong after a resumed download; once more", remote.name, remote.kind)
            part.restart()
            _get(remote, part, patience)
    except KeyboardInterrupt:
        size = part.size()
        raise Interrupted(
            str(part.path), f"stopped at {size:,} bytes", "run the same command again: it resumes"
        ) from None
    part.path.touch()  # a file of no bytes is never asked for
    if (found := digest(part.path, remote.kind)) != remote.digest:
        part.remove()
        what = f"its {remote.kind} is {found}, and the listing says {remote.digest}"
        raise InputError(remote.url, what, "try again later; if it stays so, the server's copy is damaged")
    part.path.replace(path)
    part.remove()
    return path


class _Part:
    """The unfinished file, and beside it the ETag of what it is the beginning of."""

    def __init__(self, path: Path) -> None:
        self.path, self._tag = path, path.with_name(f"{path.name}.etag")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def tag(self) -> str:
        return self._tag.read_text(encoding="latin-1") if self._tag.exists() else ""

    def restart(self, tag: str = "") -> None:
        self.path.write_bytes(b"")
        self._tag.write_text(tag, encoding="latin-1")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._tag.unlink(missing_ok=True)


def _get(remote: Remote, part: _Part, patience: Patience) -> bool:
    """Fill the `.part`; gives whether any of it was there before or came in several pieces."""
    failures = 0
    resumed = part.size() > 0
    with bar(remote.name, remote.size, in_bytes=True) as step:
        while remote.size is None or part.size() != remote.size:
            before = part.size()
            try:
                _append(remote, part, patience, step)
                break
            except (Broken, http.client.HTTPException) as error:
                if isinstance(error, Stale):
                    part.restart()
                failures = 1 if part.size() > before else failures + 1
                wait(remote.url, failures, error, patience)
                resumed = True
    return resumed


def _append(remote: Remote, part: _Part, patience: Patience, step: Callable[[int], None]) -> None:
    """One answer of the server, to its end, or as far as it comes."""
    at, tag = part.size(), part.tag()
    if remote.size is not None and at > remote.size:
        raise Stale("more bytes than the listing says")
    headers = {"Range": f"bytes={at}-"} | ({"If-Range": tag} if tag else {}) if at else {}
    with open_url(remote.url, headers, patience) as answer:
        etag = answer.headers.get("ETag", "")
        etag = "" if etag.startswith("W/") else etag  # a weak one does not promise the same bytes
        if answer.status == 206:
            if etag != tag or not _continues(answer.headers.get("Content-Range", ""), at, remote.size):
                raise Stale("other bytes than those asked for")
        else:
            at = 0
            if remote.size is not None and answer.length not in (None, remote.size):
                what = f"the server sends {answer.length:,} bytes, and its listing says {remote.size:,}"
                raise InputError(remote.url, what, "try again later")
            part.restart(etag)
        end = remote.size if remote.size is not None else at + answer.length if answer.length is not None else None
        _copy(answer, remote, part, step)
    if end is not None and part.size() < end:
        raise Broken(f"the connection ended after {part.size():,} of {end:,} bytes")


def _continues(content_range: str, at: int, size: int | None) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
    return found is not None and int(found[1]) == at and (size is None or found[2] in ("*", str(size)))


def _copy(answer: http.client.HTTPResponse, remote: Remote, part: _Part, step: Callable[[int], None]) -> None:
    with part.path.open("ab", buffering=0) as file:  # unbuffered: whatever stops us, every byte that came is kept
        done = file.tell()
        while block := _read(answer):
            try:
                file.write(block)
            except OSError as error:
                raise ResourceError(str(part.path), error.strerror or "cannot be written", "free space") from error
            done += len(block)
            if remote.size is not None and done > remote.size:
                part.remove()
                raise InputError(remote.url, f"more than the {remote.size:,} bytes of its listing", "try again later")
            step(done)
        os.fsync(file.fileno())


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(BLOCK)
    except OSError as error:  # of the network, whatever its kind; one of the disk must not pass for it
        raise Broken(str(error)) from error
