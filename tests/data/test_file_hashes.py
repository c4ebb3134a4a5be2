"""Which bytes stand in files: read once, and again only where a file may have changed; never told by size and time."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from layouts import write_dataverse

from skinmtl.data import cache, file_hashes, sources


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(bytes([number]) * 100)
    return [str(path) for path in sorted((tmp_path / "photos").iterdir())]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read, which are taken to lie there for long."""
    paths: list[str] = []
    digest = file_hashes._digest
    monkeypatch.setattr(file_hashes, "_digest", lambda path: paths.append(path) or digest(path))
    monkeypatch.setattr(file_hashes, "SETTLED", -(10**9))
    return paths


def test_a_file_is_read_again_only_where_it_may_have_changed(files: list[str], read: list[str], tmp_path: Path) -> None:
    expected = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files}
    assert file_hashes.digests(files, tmp_path / "kept") == expected and sorted(read) == files
    assert file_hashes.digests(files, tmp_path / "kept") == expected and len(read) == 5

    at = os.stat(files[2])
    Path(files[2]).write_bytes(b"x" * 100)
    os.utime(files[2], ns=(at.st_atime_ns, at.st_mtime_ns))  # only its ctime tells
    found = file_hashes.digests(files, tmp_path / "kept")
    assert read[5:] == [files[2]]
    assert {path for path in files if found[path] != expected[path]} == {files[2]}
    assert found[files[2]] == hashlib.sha256(b"x" * 100).hexdigest()


def test_a_file_that_has_just_changed_is_not_taken_for_known(
    files: list[str], read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        file_hashes, "SETTLED", 60 * 10**9
    )  # one changed again within a tick of the clock looks the same
    for _ in range(2):
        file_hashes.digests(files, tmp_path / "kept")
    assert len(read) == 10


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"a": 1}', '{"a": ["x", 0, 0, 0, "y"]}', "\x00\xff"])
def test_what_was_kept_and_is_broken_is_made_again(
    files: list[str], read: list[str], tmp_path: Path, damage: str
) -> None:
    expected = file_hashes.digests(files, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text(damage, encoding="latin-1")
    assert file_hashes.digests(files, tmp_path / "kept") == expected and len(read) == 10
    assert file_hashes.digests(files, tmp_path / "kept") == expected and len(read) == 10


def test_what_cannot_be_read_or_kept_stops_nobody(files: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "photos" / "pipe.jpg")
    (tmp_path / "photos" / "gone.jpg").symlink_to("nowhere")
    others = [str(tmp_path / "photos" / name) for name in ("pipe.jpg", "gone.jpg", "none.jpg")]
    (tmp_path / "file").touch()
    assert sorted(file_hashes.digests([*files, *others], tmp_path / "file" / "kept")) == files
    assert file_hashes.digests([], None) == {}


def test_an_older_data_hash_is_told_by_sizes_and_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dataverse(tmp_path / "data")
    table = sources.read(tmp_path / "data")
    # Made by the version before this one, of the same images.
    sizes = [[os.path.getsize(path) for path in table[name]] for name in ("image", "mask")]
    rows = zip(table["image_id"], table["lesion_id"], map(str, table["dx"]), *sizes, strict=True)
    old = cache._digest([list(row) for row in rows])
    assert cache.is_of(old, table) and "older version" in caplog.text
    new = cache.fingerprint(table)
    assert new != old and cache.is_of(new, table)
    shutil.copy(table["image"][0], table["image"][1])
    assert not cache.is_of(new, table)
    Path(table["image"][2]).write_bytes(b"of another size")
    caplog.clear()
    assert not cache.is_of(old, table) and not caplog.text
