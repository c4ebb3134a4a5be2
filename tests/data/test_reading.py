from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from layouts import make_image
from PIL import Image, ImageOps

from skinmtl.data import sources
from skinmtl.data.images import reading
from skinmtl.data.images.reading import fit_image, fit_mask, read_image, read_mask
from skinmtl.errors import InputError

IMAGE, MASK = make_image(0, (30, 40))


def save(path: Path, pixels: np.ndarray, mode: str = "RGB", **options: object) -> Path:
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def pillow(path: Path, mode: str | None = None, upright: bool = False) -> np.ndarray:
    """What Pillow makes of a file."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image) if upright else image
        return np.asarray(image.convert(mode) if mode else image)


def test_an_image_has_the_pixels_that_pillow_decodes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", IMAGE)
    assert np.array_equal(read_image(path), pillow(path))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA"])
def test_legal_odd_images_become_rgb(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), IMAGE, mode)
    assert np.array_equal(read_image(path), pillow(path, "RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[reading.ORIENTATION] = orientation
    path = save(tmp_path / "a.jpg", IMAGE, exif=exif)
    assert np.array_equal(read_image(path), pillow(path, upright=True))
    if orientation == 1:
        read_image(path, has_mask=True)
    else:
        with pytest.raises(InputError, match=r"a\.jpg: EXIF orientation"):
            read_image(path, has_mask=True)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zero_tail(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def _hole(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-200] + bytes(100) + data[-100:])


def _cut_and_closed(path: Path) -> None:
    _half(path)
    path.write_bytes(path.read_bytes() + b"\xff\xd9")


def _no_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _deep(path: Path, pixels: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(path.suffix, pixels.astype(np.uint16) * 257)[1].tobytes())


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing.jpg": lambda path: None,
    "folder.jpg": lambda path: path.mkdir(),
    "pipe.jpg": os.mkfifo,
    "empty.jpg": lambda path: path.touch(),
    "page.jpg": lambda path: path.write_text("<html>404</html>"),
    "half.jpg": lambda path: _half(save(path, IMAGE)),
    "zeros.jpg": lambda path: _zero_tail(save(path, IMAGE)),
    "endless.jpg": lambda path: _no_end(save(path, IMAGE)),
    "hole.jpg": lambda path: _hole(save(path, IMAGE)),
    "hole_grey.jpg": lambda path: _hole(save(path, IMAGE, "L", optimize=True)),
    "hole_progressive.jpg": lambda path: _hole(save(path, IMAGE, progressive=True)),
    "closed.jpg": lambda path: _cut_and_closed(save(path, IMAGE, quality=95)),
    "closed_cmyk.jpg": lambda path: _cut_and_closed(save(path, IMAGE, "CMYK", quality=95)),
    "closed_progressive.jpg": lambda path: _cut_and_closed(save(path, IMAGE, progressive=True, quality=90)),
    "half.png": lambda path: _half(save(path, IMAGE)),
    "deep.png": lambda path: _deep(path, IMAGE),
    "deep.tiff": lambda path: _deep(path, IMAGE),
    "deep_grey.png": lambda path: _deep(path, IMAGE[..., 0]),
    "glass.png": lambda path: Image.new("RGBA", (4, 4), (1, 2, 3, 128)).save(path),
    "huge.png": lambda path: Image.new("1", (8000, 8000)).save(path),
    "film.png": lambda path: Image.new("RGB", (4, 4)).save(
        path, save_all=True, append_images=[Image.new("RGB", (4, 4), "red")]
    ),
    "page.svg": lambda path: path.write_text("<svg/>"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    BROKEN[name](path)
    with pytest.raises(InputError, match=name) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", **options)
    return file.getvalue()


BLACK = np.zeros((320, 640, 3), np.uint8)
BLACK[:40, :40] = np.kron(IMAGE, np.ones((2, 2, 1), np.uint8))[:40, :40]
GREY = np.full((40, 40, 3), 128, np.uint8)
WHOLE = {
    "a trailer": jpeg(IMAGE) + b"a trailer with \xff\xda",
    "marks in a comment": jpeg(IMAGE, comment=b"\xff\xd9\xff\xda"),
    "a black margin": jpeg(BLACK, optimize=True),
    "a black margin, progressive": jpeg(BLACK, progressive=True),
    "the grey that decoders fill with": jpeg(GREY),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_jpeg_that_looks_like_a_broken_one_is_read(tmp_path: Path, name: str) -> None:
    (path := tmp_path / "a.jpg").write_bytes(WHOLE[name])
    if "margin" in name:
        assert bytes(64) in WHOLE[name][WHOLE[name].index(b"\xff\xda") :], "zeros that are pixels"
    assert np.array_equal(read_image(path), pillow(path, "RGB"))


def test_a_palette_that_runs_backwards_is_read_by_its_colours(tmp_path: Path) -> None:
    backwards = Image.fromarray((MASK == 0).astype(np.uint8)).convert("P")
    backwards.putpalette([255, 255, 255, 0, 0, 0])
    backwards.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), MASK // 255)
    # What reading the indices would give: skin for lesion.
    assert np.array_equal(pillow(tmp_path / "m.png"), 1 - MASK // 255)


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_mask_is_zero_and_one_whatever_stores_it(tmp_path: Path, mode: str) -> None:
    assert np.array_equal(read_mask(save(tmp_path / "m.png", MASK, mode), size=(30, 40)), MASK // 255)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_mask_of_one_value_is_a_mask(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "m.png", np.full((4, 5), value, np.uint8), "L")
    assert np.array_equal(read_mask(path), np.full((4, 5), min(value, 1)))


def test_a_mask_of_other_values_lossy_coloured_or_of_another_size_is_refused(tmp_path: Path) -> None:
    grey = MASK.copy()
    grey[0, 0] = 7
    with pytest.raises(InputError, match=r"grey\.png: mask values 0, 7, 255"):
        read_mask(save(tmp_path / "grey.png", grey, "L"))
    with pytest.raises(InputError, match=r"lossy\.jpg: not a whole PNG"):
        read_mask(save(tmp_path / "lossy.jpg", MASK, "L"))
    _deep(tmp_path / "deep.png", IMAGE)
    with pytest.raises(InputError, match=r"deep\.png: more than 8 bits"):
        read_mask(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"red\.png: a mask in colours"):
        read_mask(save(tmp_path / "red.png", IMAGE))
    with pytest.raises(InputError, match=r"m\.png: the mask is 40 x 30 pixels, its image 30 x 40"):
        read_mask(save(tmp_path / "m.png", MASK, "L"), size=(40, 30))


def test_a_shrunken_image_holds_means_of_areas() -> None:
    means = IMAGE.reshape(10, 3, 10, 4, 3).mean(axis=(1, 3))
    assert np.abs(fit_image(IMAGE, (10, 10)).astype(float) - means).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("size", [(7, 13), (30, 40), (61, 33), (1, 1)])
def test_fitting_gives_the_size_and_no_new_mask_value(size: tuple[int, int]) -> None:
    assert fit_image(IMAGE, size).shape == (*size, 3)
    fitted = fit_mask(MASK, size)
    assert fitted.shape == size
    assert set(np.unique(fitted)) <= {0, 255}


def test_published_masks_with_a_backwards_palette_come_out_right(real_data: Path) -> None:
    small = sources.read(real_data / "ham10000_256x192").set_index("image_id")["mask"]
    backwards = 0
    for path in sorted((real_data / "ham10000_native" / "masks").iterdir()):
        with Image.open(path) as stored:
            if stored.mode != "P" or stored.getpalette()[:3] == [0, 0, 0]:
                continue
        backwards += 1
        here = fit_mask(read_mask(path), (192, 256)).astype(bool)
        there = read_mask(Path(small[path.stem.removesuffix("_segmentation")])).astype(bool)
        assert (here & there).sum() / (here | there).sum() > 0.9, path.name
    assert backwards == 28


@pytest.fixture
def real_data() -> Path:
    if "SKINMTL_DATA" not in os.environ:
        pytest.skip("SKINMTL_DATA does not say where the real data is")
    return Path(os.environ["SKINMTL_DATA"])
