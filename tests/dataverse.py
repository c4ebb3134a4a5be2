"""A Dataverse on loopback, well-behaved or not."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Dataverse:
    """What it serves and how it misbehaves; lists are used up, one entry per request of a file."""

    files: dict[str, bytes]
    ranges: bool = True
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)  # bytes of the whole file after which the connection drops
    statuses: list[int] = field(default_factory=list)
    redirect: str | None = None
    pause: float = 0.0  # seconds between blocks
    listing: dict[str, Any] = field(default_factory=dict)  # overrides in every listed file
    url: str = ""
    sent: int = 0  # bytes of files
    asked: list[dict[str, str]] = field(default_factory=list)  # headers of requests for files

    def listed(self) -> dict[str, Any]:
        """The answer of the native API, as far as it is read; tables have been ingested."""
        entries = []
        for number, (name, data) in enumerate(self.files.items()):
            file = {"id": number, "filename": name, "filesize": len(data)}
            file["checksum"] = {"type": "MD5", "value": hashlib.md5(data).hexdigest()}
            if name.endswith(".csv"):
                file |= {"filename": name[:-4] + ".tab", "filesize": len(data) + 7, "originalFileFormat": "text/csv"}
                file |= {"originalFileName": name, "originalFileSize": len(data)}
            entries.append({"dataFile": file | self.listing})
        return {"status": "OK", "data": {"latestVersion": {"files": entries}}}


@contextmanager
def serving(dataverse: Dataverse) -> Iterator[Dataverse]:
    """Serve it while the block runs; `url` says where."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, dataverse)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that hangs up is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    dataverse.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield dataverse
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, dataverse: Dataverse) -> None:
    if request.path.startswith("/api/datasets/"):
        send(request, 200, json.dumps(dataverse.listed()).encode())
        return
    dataverse.asked.append(dict(request.headers))
    number, _, query = request.path.removeprefix("/api/access/datafile/").partition("?")
    name, data = list(dataverse.files.items())[int(number)]
    assert (query == "format=original") == name.endswith(".csv")
    if dataverse.statuses and (status := dataverse.statuses.pop(0)) != 200:
        send(request, status, b"not now")
    elif dataverse.redirect:
        send(request, 302, b"", {"Location": dataverse.redirect})
    else:
        send_file(request, dataverse, data)


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


def send_file(request: BaseHTTPRequestHandler, dataverse: Dataverse, data: bytes) -> None:
    wanted, tag = request.headers.get("Range"), request.headers.get("If-Range")
    start = 0
    if wanted and dataverse.ranges and tag in (None, dataverse.etag):
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
    if start >= len(data):
        send(request, 416, b"")
        return
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    if dataverse.etag:
        request.send_header("ETag", dataverse.etag)
    request.send_header("Content-Length", str(len(data) - start))
    request.end_headers()
    end = dataverse.cuts.pop(0) if dataverse.cuts else len(data)
    for at in range(start, end, 1000):
        request.wfile.write(data[at : min(at + 1000, end)])
        time.sleep(dataverse.pause)
    dataverse.sent += max(end - start, 0)
