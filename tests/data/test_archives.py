"""Archives that mean harm, and broken ones: every one is refused in a line, and nothing is written anywhere."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
from layouts import write_dataverse

from skinmtl.cli import commands
from skinmtl.data.prepare import command
from skinmtl.data.prepare.archives import Limits
from skinmtl.errors import InputError

KINDS = ("zip", "tar", "tar.gz")
NOTES = "HAM10000_images_part_1/notes.csv"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    write_dataverse(root, lesions=14)
    return root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of its own for the archive and what is made of it; beside it, what no archive may touch."""
    (tmp_path / "victim.csv").write_text("mine")
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def pack(path: Path, root: Path, *more: tuple[str | tarfile.TarInfo | zipfile.ZipInfo, bytes]) -> Path:
    """An archive of `root`, and after that of members of any name or kind."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the same name twice
            for file in files:
                archive.write(file, file.relative_to(root).as_posix())
            for member, data in more:
                archive.writestr(member, data)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for file in files:
            archive.add(file, file.relative_to(root).as_posix())
        for member, data in more:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def refused(archive: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says: one line or several of the usual form, exit code 2; and the disk as it was before."""
    above = archive.parent.parent
    before = sorted(str(path) for path in above.rglob("*"))
    assert commands.main(["prepare", str(archive.parent / "out"), "--from", str(archive)]) == 2
    said = capsys.readouterr().err
    assert all(line.startswith("skinmtl: error: ") and "; fix: " in line for line in said.splitlines())
    assert said.count("\n") >= 1
    assert sorted(str(path) for path in above.rglob("*")) == before
    assert (above / "victim.csv").read_text() == "mine"
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_archive_is_taken(place: Path, published: Path, kind: str) -> None:
    clutter = [(f"__MACOSX/{NOTES}", b"x"), ("HAM10000_images_part_1/._ISIC_0000000.jpg", b"x"), (".DS_Store", b"x")]
    assert (
        commands.main(["prepare", str(place / "out"), "--from", str(pack(place / f"a.{kind}", published, *clutter))])
        == 0
    )
    assert sorted(os.listdir(place)) == [f"a.{kind}", "out"]


def test_archives_of_other_things_in_a_folder_are_left_out_unopened(
    place: Path, published: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, empty = place / "downloads", place / "empty"
    folder.mkdir()
    empty.mkdir()
    pack(folder / "HAM10000.zip", published)
    link = tarfile.TarInfo("linux/link")
    link.type, link.linkname = tarfile.SYMTYPE, "../../victim.csv"
    pack(folder / "linux.tar.gz", empty, (link, b""), ("../../victim.csv", b"stolen"))
    pack(folder / "logs.zip", empty, ("log.txt", bytes(10_000_000)), ("me.jpg", b"x"))
    command.bring([folder], place / "out")
    assert sorted(record.args[0].name for record in caplog.records) == ["linux.tar.gz", "logs.zip"]
    assert (place.parent / "victim.csv").read_text() == "mine"


@pytest.mark.parametrize("kind", ["hostile", "broken", "bomb"])
def test_an_archive_in_a_folder_that_may_be_of_ham10000_is_judged_like_one_given_by_name(
    place: Path, published: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder, empty = place / "downloads", place / "empty"
    far = [0]
    folder.mkdir()
    empty.mkdir()
    whole = pack(folder / "a.zip", published).read_bytes()
    link = tarfile.TarInfo("HAM10000_images_part_1/ISIC_0000000.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "../../victim.csv"
    if kind == "hostile":
        pack(folder / "b.tar.gz", empty, (link, b""))
    elif kind == "broken":
        (folder / "b.zip").write_bytes(whole[: len(whole) // 2])
    else:  # not unpacked to its end in order to see which names come behind it
        pack(folder / "b.tar.gz", empty, ("big.log", bytes(50_000_000)), ("HAM10000_metadata.csv", b""))
        seek = gzip.GzipFile.seek
        monkeypatch.setattr(gzip.GzipFile, "seek", lambda self, at, *how: far.append(at) or seek(self, at, *how))
    said = {"hostile": "a link or a device", "broken": "a broken archive", "bomb": "more than"}[kind]
    before = sorted(place.rglob("*"))
    assert commands.main(["prepare", str(place / "out"), "--from", str(folder)]) == 2
    assert said in capsys.readouterr().err
    assert max(far) < 20_000_000
    assert sorted(place.rglob("*")) == before
    assert (place.parent / "victim.csv").read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["../victim.csv", "HAM10000_images_part_1/../../victim.csv", "/tmp/victim.csv", "C:/victim.csv", "..\\victim.csv"]
    + ["a//b.csv", "line\nbreak.csv", "x" * 300 + ".csv"],
)
def test_a_name_that_leads_elsewhere(
    place: Path, published: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack(place / f"a.{kind}", published, (name, b"stolen"))
    assert "name" in refused(archive, capsys)


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    "type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
@pytest.mark.parametrize("to", ["../victim.csv", "HAM10000_metadata.csv"])
def test_a_link_or_a_device_in_a_tar(
    place: Path, published: Path, kind: str, type_: bytes, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tarfile.TarInfo(NOTES)
    info.type, info.linkname = type_, to
    assert "a link or a device" in refused(pack(place / f"a.{kind}", published, (info, b"")), capsys)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO])
def test_a_link_or_a_device_in_a_zip(
    place: Path, published: Path, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    info = zipfile.ZipInfo(NOTES)
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    assert "a link or a device" in refused(pack(place / "a.zip", published, (info, b"../victim.csv")), capsys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["HAM10000_METADATA.csv", "HAM10000_metadata.csv", "HAM10000_metadata.csv/a.csv"])
def test_two_members_at_one_place(
    place: Path, published: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "the same place as" in refused(pack(place / f"a.{kind}", published, (name, b"other")), capsys)


def test_a_mirror_that_has_every_image_twice_is_taken(place: Path, published: Path) -> None:
    copies = [
        (file.relative_to(published).as_posix().lower().replace("isic", "ISIC"), file.read_bytes())
        for file in published.glob("HAM10000_images_part_*/*.jpg")
    ]
    archive = pack(place / "a.zip", published, *copies)
    assert len(command.bring([archive], place / "out").sums) == len(list(published.rglob("*.*")))
    altered = pack(place / "b.zip", published, (copies[0][0], b"another"))
    with pytest.raises(InputError, match="the same place as"):
        command.bring([altered], place / "other")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_by_its_ratio(place: Path, published: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    archive = pack(place / f"a.{kind}", published, (NOTES, bytes(100_000_000)))
    assert archive.stat().st_size < 200_000
    assert "more than 1 to 200" in refused(archive, capsys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"files": 20}, "too many files"),
        ({"total_bytes": 10_000}, "too many bytes"),
        ({"file_bytes": 500}, "at most 500"),
    ],
)
def test_a_bomb_by_count_and_size(place: Path, published: Path, kind: str, limits: dict[str, int], what: str) -> None:
    archive = pack(place / f"a.{kind}", published)
    with pytest.raises(InputError, match=what):
        command.bring([archive], place / "out", limits=Limits(**limits))
    assert os.listdir(place) == [archive.name]


def test_a_tar_header_that_claims_gigabytes(place: Path, published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4_000_000_000
    (place / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    assert "a header of" in refused(place / "a.tar.gz", capsys)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_within_an_archive_is_opened_and_one_within_that_is_not(
    place: Path, published: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = pack(place / f"HAM10000.{kind}", published)
    (place / "empty").mkdir()
    bundle = pack(place / "bundle.zip", place / "empty", (inner.name, inner.read_bytes()), ("MANIFEST.TXT", b"-"))
    assert len(command.bring([bundle], place / "out").sums) == len(list(published.rglob("*.*")))
    deeper = pack(place / f"deeper.{kind}", place / "empty", ("bundle.zip", bundle.read_bytes()))
    assert "within an archive within another" in refused_beside(deeper, capsys)


def refused_beside(archive: Path, capsys: pytest.CaptureFixture[str]) -> str:
    work = archive.parent / "alone" / "work"
    work.mkdir(parents=True)
    (work.parent / "victim.csv").write_text("mine")
    return refused(archive.rename(work / archive.name), capsys)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_cut_anywhere(place: Path, published: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = pack(place / f"a.{kind}", published).read_bytes()
    boundary = 512 * (len(whole) // 1024)  # of a tar's blocks, where tarfile sees nothing amiss
    end = len(whole.rstrip(b"\0")) if kind == "tar" else len(whole) - 1
    for cut in (0, 1, 600, boundary, end // 3, end):
        (place / f"a.{kind}").write_bytes(whole[:cut])
        refused(place / f"a.{kind}", capsys)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_byte_that_changed_in_a_packed_file_is_found(
    place: Path, published: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = bytearray(pack(place / f"a.{kind}", published).read_bytes())
    whole[len(whole) // 3] ^= 1
    (place / f"a.{kind}").write_bytes(whole)
    refused(place / f"a.{kind}", capsys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_checksum_beside_the_archive_decides(
    place: Path, published: Path, kind: str, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack(place / f"a.{kind}", published)
    beside = place / f"{archive.name}.{algorithm}"
    beside.write_text("0" * 64 + f"  {archive.name}\n")
    assert f"its {algorithm} is" in refused(archive, capsys)
    beside.write_text(f"{hashlib.new(algorithm, archive.read_bytes()).hexdigest()}  {archive.name}\n")
    command.bring([archive], place / "out")


def test_an_encrypted_zip(place: Path, published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(pack(place / "a.zip", published).read_bytes())
    first = data.find(b"PK\x01\x02")
    data[first + 8] |= 1
    (place / "a.zip").write_bytes(data)
    assert "encrypted" in refused(place / "a.zip", capsys)


@pytest.mark.parametrize("data", [b"", b"PK", b"<html>not found</html>", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_is_no_archive(place: Path, data: bytes, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    (place / f"a.{kind}").write_bytes(data)
    assert "a broken archive, or none at all" in refused(place / f"a.{kind}", capsys)
