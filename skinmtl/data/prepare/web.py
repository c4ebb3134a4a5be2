"""Questions to a server: over https, and again where it is busy or the connection breaks."""

from __future__ import annotations

import http.client
import ipaddress
import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from typing import IO, Any

from skinmtl.errors import InputError

logger = logging.getLogger(__name__)

TRIES = 5  # in a row without one new byte
LONGEST_WAIT = 60.0  # seconds that a server may ask for
AGAIN = {408, 425, 429, 500, 502, 503, 504}
ONLINE = "check the connection, and run the same command again: what is there is kept"


@dataclass(frozen=True)
class Patience:
    """How long to wait: for an answer, and before asking again, in seconds; the latter doubles each time."""

    answer: float = 60.0
    again: float = 1.0


PATIENT = Patience()


class Broken(Exception):
    """The connection, or the server for a while; `wait` are the seconds that it asks for."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Stale(Broken):
    """What is on the disk is not the beginning of what the server has."""


def read_json(url: str, patience: Patience = PATIENT, most: int = 50_000_000) -> Any:  # noqa: ANN401  whatever it is
    """Ask a server for JSON.

    Args:
        url: https, or http on this machine.
        patience: how long to wait.
        most: bytes of the answer that are read.

    Raises:
        InputError: no answer, or another one.
    """
    failures = 0
    while True:
        try:
            with open_url(url, {}, patience) as answer:
                text = answer.read(most)
            return json.loads(text)
        except (Broken, OSError, http.client.HTTPException) as error:
            failures += 1
            wait(url, failures, error, patience)
        except ValueError as error:
            raise InputError(url, "the answer is not JSON", "check --server") from error


def checked_url(url: str) -> str:
    """Give back a URL if it is https; or http on this very machine.

    Raises:
        InputError: it is neither.
    """
    if _is_allowed(url):
        return url
    raise InputError(url, "not https", "give an address that begins with https://")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to https; to http only from this very machine to itself."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Give the next request, or refuse one that would leave https.

        Raises:
            InputError: with the address it leads to.
        """
        if req.type == "https" and urllib.parse.urlsplit(newurl).scheme != "https" or not _is_allowed(newurl):
            fp.close()
            raise InputError(req.full_url, f"redirects to {newurl}, which is not https", "check --server")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(url: str, headers: dict[str, str], patience: Patience) -> http.client.HTTPResponse:
    """Ask a server once.

    Args:
        url: https, or http on this machine.
        headers: beside our own.
        patience: how long to wait for the answer.

    Returns:
        The answer, to be closed by the caller.

    Raises:
        InputError: the URL is not allowed, or the server refuses for good.
        Broken: it may answer next time. An HTTPException of the standard library means the same.
    """
    request = urllib.request.Request(checked_url(url), headers=headers)
    request.add_header("User-Agent", f"skinmtl/{version('skinmtl')}")
    request.add_header("Accept-Encoding", "identity")
    try:
        answer: http.client.HTTPResponse = urllib.request.build_opener(_Redirects).open(
            request, timeout=patience.answer
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise Stale("HTTP 416") from error
        if error.code in AGAIN:
            asked = error.headers.get("Retry-After", "")
            raise Broken(f"HTTP {error.code} {error.reason}", float(asked) if asked.isdigit() else 0.0) from error
        what = f"the server answers HTTP {error.code} {error.reason}"
        raise InputError(url, " ".join(what.split()), "check --server, or try again later") from error
    except OSError as error:  # no name, no route, a broken handshake
        raise Broken(str(error.reason if isinstance(error, urllib.error.URLError) else error)) from error
    return answer


def wait(url: str, failures: int, error: Exception, patience: Patience) -> None:
    """Wait before asking again, longer after each failure.

    Args:
        url: what was asked for.
        failures: how many there were in a row.
        error: the last one.
        patience: how long the first wait is.

    Raises:
        InputError: there were `TRIES` of them.
    """
    if failures >= TRIES:
        why = " ".join(str(error).split())
        raise InputError(url, f"no luck in {failures} tries ({why or type(error).__name__})", ONLINE) from error
    asked = error.wait if isinstance(error, Broken) else 0.0
    seconds = min(max(asked, patience.again * 2 ** (failures - 1)), LONGEST_WAIT)
    logger.info("%s: %s; again in %.0f s", url, error, seconds)
    time.sleep(seconds)


def _is_allowed(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
    except ValueError:  # half an IPv6 address, say
        return False
    return (parts.scheme == "https" and bool(host)) or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
