from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hangs import HANGS
from layouts import write_dataverse
from PIL import Image

from skinmtl.data import cache, cache_file, file_hashes, sources
from skinmtl.data.cache import Images
from skinmtl.data.images import reading
from skinmtl.data.mask_classes import Trimap
from skinmtl.errors import Faults

SIZE = (20, 28)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """33 images; the first has no mask."""
    write_dataverse(tmp_path / "data", lesions=22)
    (tmp_path / "data" / "HAM10000_segmentations_lesion_tschandl" / "ISIC_0000000_segmentation.png").unlink()
    return sources.read(tmp_path / "data")


@pytest.fixture
def kept(table: pd.DataFrame, tmp_path: Path) -> Path:
    path = cache.get(table, SIZE, tmp_path / "kept")
    assert path is not None
    return path


def again(table: pd.DataFrame, kept: Path) -> Path:
    path = cache.get(table, SIZE, kept.parent)
    assert path is not None
    return path


def pixels(images: Images) -> list[tuple[bytes, bytes]]:
    return [tuple(array.tobytes() for array in images.read(row)) for row in range(len(images))]


def test_a_cache_holds_the_pixels_that_decoding_gives(table: pd.DataFrame, kept: Path) -> None:
    assert pixels(Images.of(table, SIZE, kept)) == pixels(Images.of(table, SIZE))
    stored = np.load(kept)  # a plain .npy: anybody's tool reads it
    image = reading.read_image(Path(table["image"][5]))
    assert np.array_equal(stored["image"][5], reading.fit_image(image, SIZE))
    mask = reading.read_mask(Path(table["mask"][5]))
    assert np.array_equal(stored["mask"][5], reading.fit_mask(mask, SIZE))
    assert not stored["mask"][0].any() and not Images.of(table, SIZE, kept).has_mask(0)


def test_pixels_are_mapped_and_cannot_be_written_to(table: pd.DataFrame, kept: Path) -> None:
    images = Images.of(table, SIZE, kept)
    image, mask = images.read(3)
    assert np.shares_memory(image, images.read(3)[0])
    for array in (image, mask):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert len(pickle.dumps(images)) < kept.stat().st_size / 4


def test_a_warm_cache_is_used_as_it_is_and_opens_no_image(
    table: pd.DataFrame, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = kept.stat()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    for name in ("read_image", "read_mask"):
        monkeypatch.setattr(reading, name, refuse)
    assert again(table, kept) == kept
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == (began.st_mtime_ns, began.st_ino)
    Images.of(table, SIZE, kept).read(7)
    with pytest.raises(AssertionError, match="an image was opened"):
        Images.of(table, SIZE).read(7)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def _extend(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 4096)


def _overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def _flip(offset: int) -> Callable[[Path], None]:
    return lambda path: _overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 0x10]))


BEGIN = len(cache_file.header(33, SIZE))
BREAK: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: os.truncate(path, 0),
    "cut off": _cut,
    "too long": _extend,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "zeros after the header": lambda path: _overwrite(path, BEGIN, bytes(path.stat().st_size - BEGIN)),
    "zeros at the end": lambda path: _overwrite(path, path.stat().st_size - 2400, bytes(2400)),
    "text": lambda path: path.write_text("<html>404</html>"),
    "another shape": lambda path: np.save(path, np.zeros((33, 28, 20, 4), np.uint8)),
    "another count": lambda path: np.save(path, np.load(path)[:-1]),
    "pickled": lambda path: np.save(path, np.array([{}] * 33, dtype=object), allow_pickle=True),
} | {f"header, byte {offset}": _flip(offset) for offset in (0, 6, 8, 30, 64, BEGIN - 1)}


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_cache_is_built_anew_and_said_to_be(
    table: pd.DataFrame, kept: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = kept.read_bytes()
    BREAK[how](kept)
    assert kept.read_bytes() != whole
    assert again(table, kept) == kept
    assert kept.read_bytes() == whole
    assert f"{kept} is broken" in caplog.text


@pytest.mark.parametrize("what", ["flipped", "gone"])
def test_damage_that_comes_later_is_met_by_decoding(
    table: pd.DataFrame, kept: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = pixels(Images.of(table, SIZE))
    images = Images.of(table, SIZE, kept)
    if what == "flipped":
        assert images.read(7)
        _flip(BEGIN + 7 * cache_file.record(SIZE).itemsize + 100)(kept)
    else:
        kept.unlink()
    assert pixels(images) == expected
    assert len([record for record in caplog.records if "decoded instead" in record.message]) == 1
    assert not kept.exists()
    assert pixels(Images.of(table, SIZE, again(table, kept))) == expected


def test_what_has_changed_makes_a_cache_stale(
    table: pd.DataFrame, kept: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    path = Path(table["image"][4])
    Image.new("RGB", (32, 24), (1, 200, 3)).save(path, quality=95)
    new = again(table, kept)
    assert new != kept and not kept.exists()
    assert f"{kept} is stale" in caplog.text
    assert Images.of(table, SIZE, new).read(4)[0][..., 1].min() > 190

    os.utime(path)  # the same bytes, another time
    assert again(table, kept) == new
    monkeypatch.setattr(cache.cv2, "__version__", "another")  # other pixels, perhaps
    assert again(table, kept) != new and not new.exists()

    other = cache.get(table, (10, 14), kept.parent)  # another size lies beside it
    assert other is not None and len(list(kept.parent.glob("*.npy"))) == 2
    without = table.assign(mask=table["mask"].where(table.index != 9))
    assert cache.get(without, SIZE, kept.parent) not in (other, again(table, kept))


def test_other_pixels_of_the_same_size_and_time_make_a_cache_stale(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(file_hashes, "SETTLED", -(10**9))  # as if the files had lain there for long
    (tmp_path / "photos").mkdir()
    pd.DataFrame({"image": ["photos/a.bmp", "photos/b.bmp"], "lesion_id": ["A", "B"]}).to_csv("t.csv", index=False)
    hashes, before = [], None
    for level in (10, 200):
        for name in "ab":
            Image.new("RGB", (32, 24), (level, 0, 0)).save(f"photos/{name}.bmp")
            os.utime(f"photos/{name}.bmp", (0, 0))  # unpacked by what keeps no times
        own = sources.read(tmp_path / "t.csv")
        path = cache.get(own, SIZE, tmp_path / "kept")
        assert path is not None and Images.of(own, SIZE, path).read(0)[0].max() == level
        assert before is None or (f"{before} is stale" in caplog.text and not before.exists())
        hashes.append(cache.fingerprint(own, tmp_path / "kept"))
        before = path
    assert hashes[0] != hashes[1]


def test_the_checksum_sees_blocks_that_changed_places() -> None:
    written = np.zeros(2, cache_file.record((96, 128)))
    written.view(np.uint8)[:] = np.random.default_rng(0).integers(0, 256, written.nbytes, np.uint8)
    swapped = written.copy()
    one, other = (swapped.view(np.uint8)[at : at + 512] for at in (1024, 20480))
    one[:], other[:] = other.copy(), one.copy()
    assert cache_file.checksum(written, 0) != cache_file.checksum(swapped, 0)
    assert cache_file.checksum(written, 1) == cache_file.checksum(swapped, 1)


def test_a_cache_is_named_by_all_code_that_makes_its_pixels() -> None:
    assert cache.read_fitted.__module__ == reading.__name__, "whose text is in the name of the file"


def test_mask_classes_have_caches_of_their_own_side_by_side(table: pd.DataFrame, kept: Path) -> None:
    trimap = Trimap(band=0.2)
    path = cache.get(table, SIZE, kept.parent, trimap)
    assert path is not None and path != kept
    assert cache.get(table, SIZE, kept.parent, Trimap(band=0.2)) == path
    assert cache.get(table, SIZE, kept.parent, Trimap(band=0.3)) not in (path, kept)
    assert again(table, kept) == kept, "which no other classes make stale"
    read = Images.of(table, SIZE, path, trimap)
    assert pixels(read) == pixels(Images.of(table, SIZE, mask_classes=trimap))
    assert set(np.unique(read.read(5)[1])) == {0, 1, 2}
    assert pixels(read) != pixels(Images.of(table, SIZE, kept))


def test_unreadable_images_are_listed_and_leave_nothing(table: pd.DataFrame, tmp_path: Path) -> None:
    for row in (3, 8):
        Path(table["image"][row]).unlink()
    Path(table["image"][3]).symlink_to("nowhere")
    Path(table["image"][8]).touch()
    with pytest.raises(Faults) as caught:
        cache.get(table, SIZE, tmp_path / "kept")
    assert [Path(fault.where) for fault in caught.value.faults] == [Path(table["image"][row]) for row in (3, 8)]
    assert not list((tmp_path / "kept").glob("*.npy"))


def test_without_a_cache_everything_is_decoded_once_and_what_cannot_be_is_named(
    table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = Image.Exif()
    turned[reading.ORIENTATION] = 6
    Image.new("RGB", (32, 24)).save(table["image"][3], exif=turned)
    Path(table["mask"][8]).write_bytes(b"no picture")
    with pytest.raises(Faults) as caught:
        cache.check(table, tmp_path / "kept")
    assert [Path(fault.where) for fault in caught.value.faults] == [Path(table["image"][3]), Path(table["mask"][8])]

    sound = table.drop(index=[3, 8])
    cache.check(sound, tmp_path / "kept")
    monkeypatch.setattr(cache, "read_pair", lambda *_: pytest.fail("decoded again"))
    cache.check(sound, tmp_path / "kept")
    Image.new("RGB", (32, 24), "red").save(table["image"][5])
    with pytest.raises(pytest.fail.Exception, match="decoded again"):
        cache.check(sound, tmp_path / "kept")


def test_a_folder_that_cannot_be_written_means_no_cache(
    table: pd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert cache.get(table, SIZE, tmp_path / "file" / "kept") is None
    assert "no cache" in caplog.text


def _get(table: pd.DataFrame, folder: Path, barrier: object, decoded: object, pause: float) -> None:
    """In a process of its own: build, slowly, and count the images decoded."""
    read = reading.read_image

    def slow(*args: object, **options: object) -> np.ndarray:
        time.sleep(pause)
        with decoded.get_lock():  # type: ignore[attr-defined]
            decoded.value += 1  # type: ignore[attr-defined]
        return read(*args, **options)  # type: ignore[arg-type]

    reading.read_image = slow
    barrier.wait(HANGS)  # type: ignore[attr-defined]
    assert cache.get(table, SIZE, folder) is not None


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_processes_that_build_at_once_end_with_one_good_file(table: pd.DataFrame, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier, decoded, folder = fork.Barrier(3), fork.Value("i", 0), tmp_path / "kept"
    processes = [fork.Process(target=_get, args=(table, folder, barrier, decoded, 0.01)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANGS)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert decoded.value == len(table)  # one decoded, two waited
    (path,) = folder.glob("*.npy")
    assert pixels(Images.of(table, SIZE, path)) == pixels(Images.of(table, SIZE))


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.slow
def test_what_a_killed_build_left_is_swept_and_a_living_one_is_let_be(
    table: pd.DataFrame, tmp_path: Path, kept: Path
) -> None:
    fork = multiprocessing.get_context("fork")
    barrier, decoded, folder = fork.Barrier(2), fork.Value("i", 0), tmp_path / "killed"
    process = fork.Process(target=_get, args=(table, folder, barrier, decoded, 1.0))
    process.start()
    barrier.wait(HANGS)
    while decoded.value < 2:
        time.sleep(0.001)
    (left,) = folder.glob(".*.tmp")
    cache_file.sweep(folder)
    assert left.exists()  # its process lives
    process.kill()  # long before the last image
    process.join()
    assert left.exists() and not list(folder.glob("*.npy"))
    cache_file.sweep(folder)
    assert not left.exists()

    left.write_bytes(b"half")  # the same images: taken over
    (folder / ".other.tmp").write_bytes(b"half")  # others: swept
    path = cache.get(table, SIZE, folder)
    assert path is not None and [file for file in folder.iterdir() if file.suffix != ".json"] == [path]
    assert path.read_bytes() == kept.read_bytes()


@pytest.mark.parametrize("inverted", [0, 15, 17, 32])
def test_masks_that_are_skin_rather_than_lesion_are_warned_of(
    table: pd.DataFrame, tmp_path: Path, inverted: int, caplog: pytest.LogCaptureFixture
) -> None:
    for path in table["mask"].dropna()[:inverted]:
        Image.fromarray(255 * (1 - reading.read_mask(Path(path)))).save(path)
    for look in (lambda: cache.get(table, SIZE, tmp_path / "a"), lambda: cache.check(table, tmp_path / "b")):
        caplog.clear()
        look()
        assert (f"{inverted} of 32 masks hold all four corners" in caplog.text) == (inverted > 16)
