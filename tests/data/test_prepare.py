from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dataverse import Dataverse, serving
from hangs import HANGS
from layouts import ham10000_table, make_image, write_dataverse, write_kaggle, write_mirror
from PIL import Image

from skinmtl.cli import commands
from skinmtl.data import sources
from skinmtl.data.images.reading import read_image
from skinmtl.data.prepare import arrange, command, manifest, verify
from skinmtl.data.prepare.folders import walk
from skinmtl.errors import Faults, InputError, ResourceError, SkinmtlError

MASKS = "HAM10000_segmentations_lesion_tschandl"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataverse(tmp_path / "found", lesions=14)
    return tmp_path / "found"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def zipped(folder: Path, prefix: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in contents(folder).items():
            archive.writestr(prefix + name, data)
    return file.getvalue()


def published_files(root: Path) -> dict[str, bytes]:
    """The files of the Dataverse: images loose in their zips, masks in a folder, clutter of a Mac."""
    parts = [f"HAM10000_images_part_{number}" for number in (1, 2)]
    files = {f"{part}.zip": zipped(root / part) for part in parts}
    files |= {"HAM10000_metadata.csv": (root / "HAM10000_metadata.csv").read_bytes()}
    return files | {f"{MASKS}.zip": zipped(root / MASKS, f"{MASKS}/"), "ISIC2018_Task3_Test_Images.zip": b"not ours"}


def prepare(*words: object) -> int:
    return commands.main(["prepare", *map(str, words)])


def faults(act: Callable[[], object]) -> list[str]:
    with pytest.raises(SkinmtlError) as caught:
        act()
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def test_a_download_ends_in_the_published_layout(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Dataverse(published_files(root))) as server:
        assert prepare(out, "--server", server.url) == 0
    said = capsys.readouterr().out
    assert said.startswith("HAM10000, doi:10.7910/DVN/DBW86T, licence CC BY-NC 4.0: 4 files, ")
    assert "21 images, none of them HAM10000's by its id, such as ISIC_0000000" in said
    written = contents(out)
    assert written.pop("manifest.csv")
    assert written == contents(root)
    assert sorted(os.listdir(out.parent)) == ["found", "out"]
    assert prepare(out, "--verify") == 0
    assert sources.read(out)["mask"].notna().all()


def test_listing_downloads_nothing(root: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Dataverse(published_files(root))) as server:
        assert prepare(out, "--server", server.url, "--list") == 0
        assert server.asked == []
    assert "HAM10000_images_part_1.zip" in capsys.readouterr().out
    assert not out.exists()


def test_a_broken_download_leaves_its_files_for_the_next_command_and_no_result(root: Path, out: Path) -> None:
    with serving(Dataverse(published_files(root), statuses=[200, 404])) as server:
        assert prepare(out, "--server", server.url) == 2
        assert not out.exists()
        sent = server.sent
        assert prepare(out, "--server", server.url) == 0
    assert server.sent - sent < sum(map(len, server.files.values())) - sent + 1
    assert not command.downloads(out).exists()


def packed_apart(root: Path, place: Path) -> list[Path]:
    return [place / name for name, data in published_files(root).items() if (place / name).write_bytes(data)][:4]


def test_archives_folders_and_tables_come_together(root: Path, out: Path, tmp_path: Path) -> None:
    apart = packed_apart(root, tmp_path)
    wrapped = tmp_path / "archive.zip"
    wrapped.write_bytes(zipped(root, "any/name/"))
    for number, paths in enumerate([[root], apart, [wrapped], [root / "HAM10000_images_part_1", *apart[1:]]]):
        target = tmp_path / f"out{number}"
        command.bring(paths, target)
        assert {**contents(root), "manifest.csv": b""} == {**contents(target), "manifest.csv": b""}


def test_a_folder_of_archives_is_an_import(root: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    packed_apart(root, tmp_path / "downloads")
    (tmp_path / "downloads" / "ISIC2018_Task3_Test_Images.zip").unlink()
    command.bring([tmp_path / "downloads"], out)
    assert len(contents(out)) == len(contents(root)) + 1


@pytest.mark.parametrize("named", ["image_id", "file"])
def test_lesion_ids_are_joined_and_make_the_published_layout(tmp_path: Path, out: Path, named: str) -> None:
    write_mirror(tmp_path / "mirror", lesions=14)
    known = write_dataverse(tmp_path / "known", lesions=20)
    file = tmp_path / "known" / "HAM10000_metadata.csv"
    if named == "file":
        renamed = known.assign(image=known["image_id"] + ".jpg", lesion_id=" " + known["lesion_id"])
        renamed.drop(columns="image_id").to_csv(file, index=False)
    command.bring([tmp_path / "mirror"], out, lesions=file)
    table = sources.read(out)
    assert sources.recognise(out) == "dataverse"
    assert not sources.is_leaky(table)
    known = known.set_index("image_id").loc[table["image_id"]]
    for ours, theirs in {"lesion_id": "lesion_id", "dx": "dx", "source": "dataset", "dx_type": "dx_type"}.items():
        assert table[ours].tolist() == known[theirs].tolist()
    assert table["age"].tolist() == known["age"].astype(float).tolist()


@pytest.mark.parametrize(("folder", "ending"), [("masks", ""), ("outlines", "_mask"), ("old", "_seg")])
def test_masks_come_from_any_folder_that_is_named_after_them_and_what_stays_behind_is_counted(
    tmp_path: Path, out: Path, folder: str, ending: str
) -> None:
    write_kaggle(tmp_path / "kaggle")
    (tmp_path / "kaggle-masks").rename(tmp_path / folder)
    for path in (tmp_path / folder).iterdir():
        path.rename(path.with_name(path.name.replace("_segmentation", ending)))
    notes = command.bring([tmp_path / "kaggle", tmp_path / folder], out).notes
    if folder == "old":
        assert notes[-1].startswith("21 images stayed behind, such as old/ISIC_0000000_seg.png: no row of the table")
    else:
        assert sources.read(out)["mask"].notna().all()
        assert "21 of them have a mask" in notes
        assert "stayed behind" not in "".join(notes)


def test_without_lesion_ids_the_layout_stays_and_the_report_says_so(tmp_path: Path, out: Path) -> None:
    write_mirror(tmp_path / "mirror", lesions=14)
    report = command.bring([tmp_path / "mirror"], out)
    assert {**contents(out), "manifest.csv": b""} == {**contents(tmp_path / "mirror"), "manifest.csv": b""}
    assert any("no lesion ids" in note for note in report.notes)


def test_the_last_line_is_what_training_will_take(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mirror(tmp_path / "mirror", lesions=14)
    for source, more in ((root, ""), (tmp_path / "mirror", " data.allow_leak=true, which stamps every score LEAKY")):
        out = tmp_path / f"out_{source.name}"
        assert prepare(out, "--from", source) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"Use it: data.root={out}{more}"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t[2:], "no row for these images: ISIC_0000000, ISIC_0000001"),
        (lambda t: t.assign(lesion_id=t["lesion_id"].where(t["image_id"] != "ISIC_0000003", "")), "ISIC_0000003"),
        (
            lambda t: pd.concat([t, t[:1].assign(lesion_id="x")]),
            r"several lesions for one image: row 2 \(ISIC_0000",
        ),
        (
            lambda t: t.drop(columns="dx").replace("HAM_0000001", "HAM_0000000"),
            r"lesions.csv: lesion HAM_0000000 has several diagnoses: akiec \(ISIC_0000000\), bcc \(ISIC_0000001\)",
        ),
        (lambda t: t.assign(dx=t["dx"].where(t["image_id"] != "ISIC_0000003", "nv")), "another dx.*ISIC_0000003"),
        (lambda t: t.drop(columns="lesion_id"), "no column lesion_id"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    tmp_path: Path, out: Path, change: Callable[[pd.DataFrame], pd.DataFrame], what: str
) -> None:
    write_mirror(tmp_path / "mirror", lesions=14)
    change(write_dataverse(tmp_path / "known", lesions=14)).to_csv(tmp_path / "lesions.csv", index=False)
    with pytest.raises(SkinmtlError, match=what):
        command.bring([tmp_path / "mirror"], out, lesions=tmp_path / "lesions.csv")
    assert sorted(os.listdir(tmp_path)) == ["known", "lesions.csv", "mirror"]


def test_names_and_places_are_gone_and_pixels_are_not(root: Path, out: Path) -> None:
    secret = b"Jane Roe, record 4711"
    image = next(root.glob("HAM10000_images_part_1/*.jpg"))
    block = Image.Exif()
    block[0x010E] = secret.decode()
    Image.fromarray(make_image(3)[0]).save(image, exif=block, comment=secret)
    assert secret in image.read_bytes()
    command.bring([root], out)
    assert not any(secret in data for data in contents(out).values())
    np.testing.assert_array_equal(read_image(out / image.relative_to(root)), read_image(image))


def test_every_fault_is_said_at_once_by_the_name_it_came_with_and_nothing_is_left(root: Path, out: Path) -> None:
    images = sorted(root.glob("HAM10000_images_part_1/*.jpg"))
    masks = sorted((root / MASKS).iterdir())
    images[0].write_bytes(images[0].read_bytes()[:-300])
    images[1].write_bytes(b"")
    images[2].write_bytes(b"RIFF____WEBP")
    Image.fromarray(make_image(0, (8, 8))[1]).save(masks[7])
    Image.fromarray(make_image(0)[0]).save(masks[9])
    said = faults(lambda: command.bring([root], out))
    spoilt = [*images[:3], masks[7], masks[9]]
    assert sorted(line.partition(": ")[0] for line in said) == sorted(str(path.relative_to(root)) for path in spoilt)
    assert all("partial-" not in line for line in said)
    assert os.listdir(out.parent) == ["found"]


def test_metadata_that_is_wrong_is_said_by_its_own_name(root: Path, out: Path) -> None:
    next(root.glob("HAM10000_images_part_1/*.jpg")).unlink()
    (said,) = faults(lambda: command.bring([root], out))
    assert said.startswith("HAM10000_metadata.csv: no such image")
    assert os.listdir(out.parent) == ["found"]


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "images alone", "text"])
def test_what_holds_no_ham10000_is_refused(tmp_path: Path, out: Path, root: Path, kind: str) -> None:
    there = tmp_path / "there"
    if kind == "empty folder":
        there.mkdir()
    elif kind == "images alone":
        there = root / "HAM10000_images_part_1"
    elif kind == "text":
        there.write_text("hello")
    (said,) = faults(lambda: command.bring([there], out))
    assert "partial" not in said
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_holds_something_is_never_written_to(root: Path, out: Path) -> None:
    out.mkdir()
    command.bring([root], out)  # an empty one is fine
    before = contents(out)
    assert "there is something already" in faults(lambda: command.bring([root], out))[0]
    assert contents(out) == before


def test_a_link_to_an_empty_folder_is_filled_where_it_leads(root: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    out.symlink_to(tmp_path / "disk")
    assert prepare(out, "--from", root) == 0
    assert (tmp_path / "disk" / manifest.NAME).is_file()
    assert prepare(out, "--verify") == 0


def test_a_disk_and_a_missing_table_are_refused_before_any_work(
    root: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "a disk of its own" in faults(lambda: command.bring([root], Path("/")))[0]
    assert prepare(out, "--lesions", "nowhere.csv") == 2  # a download would ask the network, which fails a test
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 4, "{here}: cannot be written (No space left on device): "),
        (
            OSError(errno.EROFS, "Read-only", "a"),
            4,
            "a: cannot be written (Read-only); fix: allow writing into {here}, or",
        ),
        (OSError(errno.EEXIST, "File exists", "a"), 2, "a: File exists; fix: check the path"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), 4, "the system: No route to host; fix: see to the machine"),
        (OSError("odd"), 4, "the system: OSError: odd; fix: see to the machine"),
    ],
)
def test_what_the_system_refuses_is_said_in_its_own_words(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, code: int, said: str
) -> None:
    monkeypatch.setattr(verify, "check", lambda _: (_ for _ in ()).throw(error))
    assert prepare(out, "--verify") == code
    assert capsys.readouterr().err.startswith(f"skinmtl: error: {said.format(here=Path.cwd())}")


def test_a_place_below_a_file_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(root / "HAM10000_metadata.csv" / "out", "--from", root) == 2
    assert "Not a directory; fix: check the path and its permissions, or name another" in capsys.readouterr().err


def test_two_different_files_of_one_name_are_refused(root: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "again")
    command.bring([root, tmp_path / "again"], out)
    image = next((tmp_path / "again").rglob("*.jpg"))
    Image.fromarray(make_image(99)[0]).save(image)
    assert "they differ" in faults(lambda: command.bring([root, tmp_path / "again"], tmp_path / "other"))[0]


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ResourceError, match="are free"):
        command.bring([root], out)
    assert os.listdir(out.parent) == ["found"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_stop_leaves_nothing_behind_and_nohup_is_obeyed(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, number: int, ignored: bool
) -> None:
    def stopped(*words: object) -> dict[str, str]:
        os.kill(os.getpid(), number)
        return arrange.arrange(*words)

    def heard(*_: object) -> None:
        raise AssertionError("nobody turned the signal into Ctrl-C")

    monkeypatch.setattr(command, "arrange", stopped)
    handler = signal.SIG_IGN if ignored else heard
    before = signal.signal(number, handler)
    try:
        assert prepare(out, "--from", root) == (0 if ignored else 75)
        assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)
    assert sorted(os.listdir(out.parent)) == (["found", "out"] if ignored else ["found"])


def test_what_a_killed_import_left_is_swept_and_nothing_else(root: Path, out: Path) -> None:
    names = ["out.partial-0123abcd", "out.partial-76543210", "out.partial-backup", "other.partial-0123abcd"]
    for name in names:
        (out.parent / name / "found").mkdir(parents=True)
    claimed = os.open(out.parent / names[1], os.O_RDONLY)
    fcntl.flock(claimed, fcntl.LOCK_EX)
    command.bring([root], out)
    os.close(claimed)
    assert sorted(os.listdir(out.parent)) == sorted(["found", "out", *names[1:]])


# ---- verify ----


def test_each_of_fifty_flipped_bytes_is_found(tmp_path: Path, out: Path) -> None:
    write_dataverse(tmp_path / "found", lesions=42)
    command.bring([tmp_path / "found"], out)
    assert not verify.check(out).faults
    rng = np.random.default_rng(0)
    files = rng.choice([path for path in sorted(out.rglob("*")) if path.suffix in (".jpg", ".png")], 50, replace=False)
    for path in files:
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
    report = verify.check(out)
    assert sorted(report.faults) == sorted(str(path.relative_to(out)) for path in files)
    assert len(report.all_faults()) == 50
    assert prepare(out, "--verify") == 2


def test_missing_and_added_files_and_a_changed_table_are_found(root: Path, out: Path) -> None:
    command.bring([root], out)
    next((out / MASKS).iterdir()).unlink()
    (out / "notes.txt").write_text("hello")
    path = out / "HAM10000_metadata.csv"
    path.write_text(path.read_text().replace("female", "male"))
    said = sorted(fault.what for fault in verify.check(out).all_faults())
    expected = ["its size changed since manifest.csv was written", "missing, and in manifest.csv"]
    assert said == [*expected, "not in manifest.csv"]


@pytest.mark.parametrize("text", ["", "path,bytes\n", "path,bytes,sha256\na,b,c\n", "path,bytes,sha256\na\n", "\0"])
def test_a_broken_manifest_is_said(root: Path, out: Path, text: str) -> None:
    command.bring([root], out)
    (out / manifest.NAME).write_text(text)
    assert "not a manifest" in faults(lambda: verify.check(out))[0]


def test_twenty_images_with_zeros_for_an_end_are_found_without_a_manifest(tmp_path: Path) -> None:
    write_dataverse(tmp_path, lesions=42)
    assert not verify.check(tmp_path).faults
    images = sorted(tmp_path.glob("HAM10000_images_part_*/*.jpg"))[:20]
    for path in images:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    report = verify.check(tmp_path)
    assert sorted(report.faults) == [str(path.relative_to(tmp_path)) for path in images]
    assert any("no manifest.csv here" in note for note in report.notes)


def test_pictures_are_looked_at_even_where_the_table_is_broken(root: Path) -> None:
    (root / "HAM10000_metadata.csv").write_text("hello\n1\n")
    next(root.glob("HAM10000_images_part_1/*.jpg")).write_bytes(b"")
    assert len(faults(lambda: (_ for _ in ()).throw(Faults(verify.check(root).all_faults())))) == 2


def test_counts_are_explained(root: Path) -> None:
    table = ham10000_table().assign(image_id=sorted(verify.IDS), mask="there", sex=None)
    notes = verify.counted(table)
    assert notes[:3] == ["10,015 of 10,015 images: all of HAM10000", "10,015 of them have a mask", notes[2]]
    assert notes[2:] == ["7,470 of 7,470 lesions"] + [f"{n:,} of {n:,} {dx}" for dx, n in verify.IMAGES.items()]

    part = table[:598].assign(mask=["there"] * 597 + [None])
    assert verify.counted(part)[:2] == [
        "598 of 10,015 images: a part of HAM10000",
        "597 of them have a mask, 1 have none",
    ]
    more = pd.concat(
        [table, table[:5].assign(image_id=[f"ISIC_{n:07d}" for n in range(40000, 40005)], lesion_id="new")]
    )
    assert verify.counted(more)[1] == "5 more, not HAM10000's by their ids, such as ISIC_0040000"
    assert any("1 more than published" in note for note in verify.counted(more))
    relabelled = table.assign(dx=["nv"] + table["dx"].astype(str).tolist()[1:])
    relabelled.loc[relabelled.index[relabelled["dx"] == "mel"][0], "dx"] = "df"
    assert "rows were relabelled" in verify.counted(relabelled)[-1]
    strange = verify.counted(table[:2].assign(image_id=["a", "b"], dx="nevus"))
    assert strange[0] == "2 images, none of them HAM10000's by its id, such as a"
    assert strange[-1] == "2 nevus"
    assert any("no lesion ids" in note for note in verify.counted(table.assign(lesion_id=table["image_id"])))


def test_images_that_are_the_same_bytes_are_named(root: Path, out: Path) -> None:
    first, second = sorted(root.glob("HAM10000_images_part_1/*.jpg"))[:2]
    second.write_bytes(first.read_bytes())
    assert f"{first.stem} = {second.stem}: the same bytes, of 2 lesions" in command.bring([root], out).notes


# ---- folders ----


def test_circles_of_links_end_and_each_file_comes_once(root: Path, tmp_path: Path) -> None:
    expected = sorted(path for path in root.rglob("*") if path.is_file())
    (root / "circle").symlink_to(root)
    (root / "HAM10000_images_part_1" / "up").symlink_to("..")
    (root / "itself").symlink_to("itself")
    (root / "second.jpg").symlink_to(next(root.rglob("*.jpg")))
    assert list(walk(root)) == expected
    elsewhere = tmp_path / "elsewhere.jpg"
    elsewhere.write_bytes(b"x")
    (root / "first.jpg").symlink_to(elsewhere)
    (root / "third.jpg").symlink_to(elsewhere)
    assert sorted({*walk(root)} - {*expected}) == [root / "first.jpg"]


def test_a_link_to_nowhere_and_a_pipe_are_named(root: Path) -> None:
    (root / "a.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(root / "b.jpg")
    said = faults(lambda: list(walk(root)))
    assert [line.partition(";")[0].removeprefix(f"{root}/") for line in said] == [
        "a.jpg: a link to nowhere",
        "b.jpg: not a file",
    ]


def test_folders_that_cannot_be_listed_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {str(root / name) for name in ("HAM10000_images_part_1", MASKS)}
    scan = os.scandir

    def scandir(path: Path) -> object:
        if str(path) in hidden:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    said = faults(lambda: list(walk(root)))
    assert {line.partition(": ")[0] for line in said} == hidden


def test_the_command_starts_without_torch() -> None:
    code = "import sys, skinmtl.data.prepare.command, skinmtl.data.prepare.dataverse; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=HANGS).returncode == 0


def test_a_refusal_names_the_command_that_checks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(root, "--from", root) == 2
    assert f"skinmtl prepare {root} --verify" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such folder"):
        verify.check(root / "nowhere")
