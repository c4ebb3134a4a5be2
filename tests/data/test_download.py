from __future__ import annotations

import hashlib
import http.client
import io
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from dataverse import Dataverse, serving
from hangs import HANGS

from skinmtl.data.prepare import dataverse as listing
from skinmtl.data.prepare import web
from skinmtl.data.prepare.download import Remote, fetch
from skinmtl.data.prepare.web import Patience
from skinmtl.errors import InputError, SkinmtlError

DATA = np.random.default_rng(0).bytes(50_000)
NAME = "HAM10000_images_part_1.zip"
QUICK = Patience(answer=5, again=0)


def remote(server: Dataverse, **changes: object) -> Remote:
    found = listing.files(server.url, QUICK)[0]
    return Remote(**(found.__dict__ | changes))


def refused(server: Dataverse, folder: Path, **changes: object) -> SkinmtlError:
    """The answer, one line with exit code 2, and nothing under the file's name."""
    with pytest.raises(SkinmtlError) as caught:
        fetch(remote(server, **changes), folder, QUICK)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    assert not (folder / NAME).exists()
    return caught.value


def test_a_file_arrives_whole_and_alone(tmp_path: Path) -> None:
    with serving(Dataverse({NAME: DATA})) as server:
        path = fetch(remote(server), tmp_path, QUICK)
    assert path.read_bytes() == DATA
    assert os.listdir(tmp_path) == [NAME]


def test_a_file_that_is_there_is_not_fetched_again_unless_it_changed(tmp_path: Path) -> None:
    with serving(Dataverse({NAME: DATA})) as server:
        path = fetch(remote(server), tmp_path, QUICK)
        fetch(remote(server), tmp_path, QUICK)
        assert server.sent == len(DATA)
        path.write_bytes(DATA[:-1] + b"x")
        fetch(remote(server), tmp_path, QUICK)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("point", [*range(0, 50_000, 5_500), 49_999])
def test_a_cut_at_any_point_costs_no_byte_twice(tmp_path: Path, point: int) -> None:
    with serving(Dataverse({NAME: DATA}, cuts=[point])) as server:
        assert fetch(remote(server), tmp_path, QUICK).read_bytes() == DATA
    assert len(server.asked) == 2
    assert server.sent == len(DATA)


def test_ten_cuts_in_one_download_are_survived_by_continuing(tmp_path: Path) -> None:
    with serving(Dataverse({NAME: DATA}, cuts=list(range(4_500, 49_500, 4_500)))) as server:
        assert fetch(remote(server), tmp_path, QUICK).read_bytes() == DATA
    assert server.sent == len(DATA)
    assert [asked.get("If-Range") for asked in server.asked] == [None, *['"one"'] * 10]


def test_a_server_without_ranges_is_asked_from_the_start(tmp_path: Path) -> None:
    with serving(Dataverse({NAME: DATA}, cuts=[20_000], ranges=False)) as server:
        assert fetch(remote(server), tmp_path, QUICK).read_bytes() == DATA
    assert server.sent == 20_000 + len(DATA)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_a_server_without_a_strong_etag_is_continued_and_the_checksum_decides(tmp_path: Path, etag: str | None) -> None:
    with serving(Dataverse({NAME: DATA}, cuts=[20_000], etag=etag)) as server:
        assert fetch(remote(server), tmp_path, QUICK).read_bytes() == DATA
        assert server.sent == len(DATA)
        (tmp_path / NAME).rename(tmp_path / f"{NAME}.part")  # a beginning of something else
        (tmp_path / f"{NAME}.part").write_bytes(b"x" * 20_000)
        assert fetch(remote(server), tmp_path, QUICK).read_bytes() == DATA


def test_a_changed_etag_starts_again(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 20_000)
    (tmp_path / f"{NAME}.part.etag").write_text('"old"')
    with serving(Dataverse({NAME: DATA})) as server:
        assert fetch(remote(server), tmp_path, QUICK).read_bytes() == DATA
    assert server.sent == len(DATA)
    assert os.listdir(tmp_path) == [NAME]


def test_a_part_longer_than_the_file_starts_again(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 60_000)
    with serving(Dataverse({NAME: DATA})) as server:
        assert fetch(remote(server), tmp_path, QUICK).read_bytes() == DATA


def test_a_busy_server_is_asked_again_and_not_for_ever(tmp_path: Path) -> None:
    with serving(Dataverse({NAME: DATA}, statuses=[500, 503, 429, 502])) as server:
        assert fetch(remote(server), tmp_path, QUICK).read_bytes() == DATA
        server.statuses = [500] * 20
        assert "no luck in 5 tries (HTTP 500" in str(refused(server, tmp_path / "other"))
        assert len(server.asked) == 5 + 5


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_said_at_once(tmp_path: Path, status: int) -> None:
    with serving(Dataverse({NAME: DATA}, statuses=[status])) as server:
        assert f"HTTP {status}" in str(refused(server, tmp_path))
        assert len(server.asked) == 1


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_a_size_that_is_not_the_listed_one_is_refused(tmp_path: Path, size: int) -> None:
    with serving(Dataverse({NAME: DATA}, listing={"filesize": size})) as server:
        assert "its listing says" in str(refused(server, tmp_path))


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    with serving(Dataverse({NAME: DATA})) as server:
        assert "its md5 is" in str(refused(server, tmp_path, digest="0" * 32))
    assert os.listdir(tmp_path) == []


def test_a_size_that_is_not_listed_is_the_servers_to_say(tmp_path: Path) -> None:
    with serving(Dataverse({NAME: DATA}, cuts=[20_000])) as server:
        assert fetch(remote(server, size=None), tmp_path, QUICK).read_bytes() == DATA
    assert server.sent == len(DATA)


@pytest.mark.slow
def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(tmp_path: Path) -> None:
    with serving(Dataverse({NAME: DATA[:5_000]}, pause=0.05)) as server:
        assert fetch(remote(server), tmp_path, QUICK).read_bytes() == DATA[:5_000]
        server.pause = 2
        hasty = Patience(answer=0.2, again=0)
        path = fetch(remote(server), tmp_path / "other", hasty)  # each try brings one block, which is kept
    assert path.read_bytes() == DATA[:5_000]


def test_no_answer_at_all_is_one_line() -> None:
    with serving(Dataverse({NAME: DATA})) as server:
        url = server.url
    with pytest.raises(InputError, match="no luck in 5 tries .*refused"):
        listing.files(url, QUICK)


@pytest.mark.parametrize("name", ["HTTPResponse.read1", "HTTPConnection.getresponse"])
@pytest.mark.parametrize("error", [OSError(113, "No route to host"), OSError(100, "Network is down"), ssl.SSLError(1)])
def test_a_network_that_goes_away_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: OSError
) -> None:
    with serving(Dataverse({NAME: DATA})) as server:
        file, calls = remote(server), []
        kind, method = name.split(".")
        real = getattr(getattr(http.client, kind), method)

        def away(self: object, *words: object) -> object:
            calls.append(words)
            if len(calls) == 2 or (len(calls) == 1 and method == "getresponse"):
                raise error
            return real(self, *words)

        monkeypatch.setattr(getattr(http.client, kind), method, away)
        assert fetch(file, tmp_path, QUICK).read_bytes() == DATA
    assert server.sent < 2 * len(DATA)


@pytest.mark.parametrize("to", ["http://198.51.100.7/file", "ftp://127.0.0.1/file", "file:///etc/hostname"])
def test_a_redirect_to_anything_but_https_is_refused(tmp_path: Path, to: str) -> None:
    with serving(Dataverse({NAME: DATA}, redirect=to)) as server:
        assert to in str(refused(server, tmp_path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("to", ["http://example.org/file", "http://127.0.0.1/file"])
def test_a_redirect_from_https_to_http_is_refused_even_to_this_machine(to: str) -> None:
    request = urllib.request.Request("https://example.org/file")
    with pytest.raises(InputError, match="which is not https"):
        web._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, to)
    followed = web._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, "https://example.com/file")
    assert followed.full_url == "https://example.com/file"


@pytest.mark.parametrize(
    "url", ["http://dataverse.harvard.edu", "file:///tmp", "https://", "https://[x", "harvard.edu"]
)
def test_only_https_is_asked(url: str) -> None:
    with pytest.raises(InputError, match="not https"):
        listing.files(url)


def test_the_listing_gives_deposited_tables_and_leaves_test_images_out() -> None:
    files = {NAME: DATA, "HAM10000_metadata.csv": b"a,b\n", "ISIC2018_Task3_Test_Images.zip": b"not ours"}
    with serving(Dataverse(files)) as server:
        images, table = listing.files(server.url, QUICK)
    assert (images.name, images.size, images.kind) == (NAME, len(DATA), "md5")
    assert images.digest == hashlib.md5(DATA).hexdigest()
    assert (table.name, table.size) == ("HAM10000_metadata.csv", 4)
    assert table.url.endswith("/api/access/datafile/1?format=original")


@pytest.mark.parametrize(
    "change",
    [
        {"filename": "HAM10000_/../../x.zip"},
        {"filename": "elsewhere.zip"},
        {"checksum": None},
        {"checksum": {"type": "CRC", "value": "0"}},
        {"filesize": "many"},
        {"id": "1/../../2"},
    ],
    ids=str,
)
def test_an_odd_listing_is_refused(change: dict[str, object]) -> None:
    with (
        serving(Dataverse({NAME: DATA}, listing=change)) as server,
        pytest.raises(InputError, match="listing") as caught,
    ):
        listing.files(server.url, QUICK)
    assert len(str(caught.value).splitlines()) == 1


def test_an_interrupted_download_goes_on_with_the_next_command(tmp_path: Path) -> None:
    with serving(Dataverse({NAME: DATA}, pause=1.0)) as server:  # stopped long before its end, on a busy machine too
        file = remote(server)
        code = f"""
import signal
from pathlib import Path
from skinmtl.data.prepare.download import *
from skinmtl.errors import Interrupted
try:
    fetch(Remote(**{file.__dict__}), Path({str(tmp_path)!r}))
except Interrupted as error:
    print(error)
    raise SystemExit(error.exit_code)
"""
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        part = tmp_path / f"{NAME}.part"
        while not (part.exists() and part.stat().st_size):
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=HANGS)
        kept = part.stat().st_size
        assert child.returncode == 75
        assert f"stopped at {kept:,} bytes" in said
        server.pause, server.sent = 0, 0
        assert fetch(file, tmp_path, QUICK).read_bytes() == DATA
        assert server.sent == len(DATA) - kept
