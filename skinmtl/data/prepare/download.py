"""One file from a server onto the disk: resumed where it broke off, and checked.

Of the standard library: pooch, which is made for this, does not resume, and deletes what it has when a download breaks.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from skinmtl import __version__
from skinmtl.data.prepare import progress
from skinmtl.errors import InputError, Interrupted, ResourceError

logger = logging.getLogger(__name__)

BLOCK = 2**18  # bytes read at once
TRIES = 5  # in a row without one new byte
LONGEST_WAIT = 60.0  # seconds that a server may ask for
AGAIN = {408, 425, 429, 500, 502, 503, 504}
ONLINE = "check the connection, and run the same command again: what is there is kept"


@dataclass(frozen=True)
class Remote:
    """A file on a server: where, how many bytes, and the checksum by the name that hashlib knows."""

    name: str
    url: str
    size: int | None
    kind: str
    digest: str


@dataclass(frozen=True)
class Patience:
    """How long to wait: for an answer, and before asking again, in seconds; the latter doubles each time."""

    answer: float = 60.0
    again: float = 1.0


PATIENT = Patience()


class _Broken(Exception):
    """The connection, or the server for a while; `wait` are the seconds that it asks for."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class _Stale(_Broken):
    """What is on the disk is not the beginning of what the server has."""


def fetch(remote: Remote, folder: Path, patience: Patience = PATIENT) -> Path:
    """The file in `folder`, downloaded unless it is there already; a `.part` beside it is continued.

    The `.part` stays when the download fails or is stopped, with the server's ETag beside it, which decides whether it
    may be continued: by Range and If-Range. A file whose checksum is wrong is never left under its name.

    Raises:
        InputError: the server refuses, redirects to where it must not, or sends something else than it lists.
        Interrupted: Ctrl-C.
        ResourceError: the disk is full.
    """
    path = folder / remote.name
    if path.is_file() and _digest(path, remote.kind) == remote.digest:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = _Part(folder / f"{remote.name}.part")
    try:
        resumed = _get(remote, part, patience)
        if _digest(part.path, remote.kind) != remote.digest and resumed:
            logger.warning("%s: its %s is wrong after a resumed download; once more", remote.name, remote.kind)
            part.restart()
            _get(remote, part, patience)
    except KeyboardInterrupt:
        size = part.size()
        raise Interrupted(
            str(part.path), f"stopped at {size:,} bytes", "run the same command again: it goes on"
        ) from None
    if (found := _digest(part.path, remote.kind)) != remote.digest:
        part.remove()
        what = f"its {remote.kind} is {found}, and the listing says {remote.digest}"
        raise InputError(remote.url, what, "try again later; if it stays so, the server's copy is damaged")
    part.path.replace(path)
    part.remove()
    return path


def read_json(url: str, patience: Patience = PATIENT, most: int = 50_000_000) -> Any:  # noqa: ANN401  whatever it is
    """A JSON answer of a server.

    Raises:
        InputError: no answer, or another one.
    """
    failures = 0
    while True:
        try:
            with _open(url, {}, patience) as answer:
                text = answer.read(most)
            return json.loads(text)
        except (_Broken, OSError, http.client.HTTPException) as error:
            failures += 1
            _wait(url, failures, error, patience)
        except ValueError as error:
            raise InputError(url, "the answer is not JSON", "check --server") from error


def checked_url(url: str) -> str:
    """The URL, if it is https; or http on this very machine.

    Raises:
        InputError: it is neither.
    """
    if _is_allowed(url):
        return url
    raise InputError(url, "not https", "give an address that begins with https://")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to https; to http only from this very machine to itself."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https" or not _is_allowed(newurl):
            fp.close()
            raise InputError(req.full_url, f"redirects to {newurl}, which is not https", "check --server")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
    with progress.bar(remote.name, remote.size, in_bytes=True) as step:
        while remote.size is None or part.size() != remote.size:
            before = part.size()
            try:
                _append(remote, part, patience, step)
                break
            except (_Broken, urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                if isinstance(error, _Stale):
                    part.restart()
                failures = 1 if part.size() > before else failures + 1
                _wait(remote.url, failures, error, patience)
                resumed = True
    return resumed


def _append(remote: Remote, part: _Part, patience: Patience, step: Callable[[int], None]) -> None:
    """One answer of the server, to its end, or as far as it comes."""
    at, tag = part.size(), part.tag()
    if remote.size is not None and at > remote.size:
        raise _Stale("more bytes than the listing says")
    headers = {"Range": f"bytes={at}-"} | ({"If-Range": tag} if tag else {}) if at else {}
    with _open(remote.url, headers, patience) as answer:
        etag = answer.headers.get("ETag", "")
        etag = "" if etag.startswith("W/") else etag  # a weak one does not promise the same bytes
        if answer.status == 206:
            if etag != tag or not _continues(answer.headers.get("Content-Range", ""), at, remote.size):
                raise _Stale("other bytes than those asked for")
        else:
            at = 0
            if remote.size is not None and answer.length not in (None, remote.size):
                what = f"the server sends {answer.length:,} bytes, and its listing says {remote.size:,}"
                raise InputError(remote.url, what, "try again later")
            part.restart(etag)
        end = remote.size if remote.size is not None else at + answer.length if answer.length is not None else None
        _copy(answer, remote, part, step)
    if end is not None and part.size() < end:
        raise _Broken(f"the connection ended after {part.size():,} of {end:,} bytes")


def _continues(content_range: str, at: int, size: int | None) -> bool:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
    return found is not None and int(found[1]) == at and (size is None or found[2] in ("*", str(size)))


def _copy(answer: http.client.HTTPResponse, remote: Remote, part: _Part, step: Callable[[int], None]) -> None:
    with part.path.open("ab", buffering=0) as file:  # unbuffered: whatever stops us, every byte that came is kept
        done = file.tell()
        while block := answer.read1(BLOCK):
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


def _open(url: str, headers: dict[str, str], patience: Patience) -> http.client.HTTPResponse:
    request = urllib.request.Request(checked_url(url), headers=headers)
    request.add_header("User-Agent", f"skinmtl/{__version__}")
    request.add_header("Accept-Encoding", "identity")
    try:
        answer: http.client.HTTPResponse = _opener().open(request, timeout=patience.answer)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _Stale("HTTP 416") from error
        if error.code in AGAIN:
            asked = error.headers.get("Retry-After", "")
            raise _Broken(f"HTTP {error.code} {error.reason}", float(asked) if asked.isdigit() else 0.0) from error
        what = f"the server answers HTTP {error.code} {error.reason}"
        raise InputError(url, " ".join(what.split()), "check --server, or try again later") from error
    return answer


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


def _wait(url: str, failures: int, error: Exception, patience: Patience) -> None:
    if failures >= TRIES:
        why = " ".join(str(error.reason if isinstance(error, urllib.error.URLError) else error).split())
        raise InputError(url, f"no luck in {failures} tries ({why or type(error).__name__})", ONLINE) from error
    asked = error.wait if isinstance(error, _Broken) else 0.0
    seconds = min(max(asked, patience.again * 2 ** (failures - 1)), LONGEST_WAIT)
    logger.info("%s: %s; again in %.0f s", url, error, seconds)
    time.sleep(seconds)


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _is_allowed(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    return (parts.scheme == "https" and bool(host)) or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
