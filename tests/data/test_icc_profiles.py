"""Colour profiles, EXIF orientation and palettes: what decoders do or leave undone without a word, by one rule."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import make_image, write_dataverse
from PIL import Image, ImageCms

from skinmtl.cli import commands
from skinmtl.data import sources
from skinmtl.data.images import reading
from skinmtl.data.images.reading import read_image, read_mask
from skinmtl.data.prepare.exif import without_metadata
from skinmtl.errors import InputError
from skinmtl.evaluation import baselines

IMAGE, MASK = make_image(0, (30, 40))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Red, green and blue of Adobe RGB (1998) and of sRGB in XYZ as profiles have it, under D50; from the two standards.
ADOBE = np.array([[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087], [0.14919, 0.06322, 0.74457]]).T
S_RGB = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]]).T


def profile(space: bytes, gamma: float, primaries: np.ndarray | None = None) -> bytes:
    """An ICC profile of version 2: one curve for all channels, and where the primaries lie."""

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    words = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"mine\0" + bytes(78)
    parts = [(b"desc", words), (b"wtpt", xyz(np.array([0.9642, 1.0, 0.8249]))), (b"cprt", b"text\0\0\0\0none")]
    if primaries is None:
        parts.append((b"kTRC", curve))
    else:
        for name, values in zip("rgb", primaries.T, strict=True):
            parts += [(f"{name}XYZ".encode(), xyz(values)), (f"{name}TRC".encode(), curve)]
    table, body, at = b"", b"", 132 + 12 * len(parts)
    for name, data in parts:
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", round(0.9642 * 65536), 65536, round(0.8249 * 65536)) + bytes(48)
    return header + struct.pack(">I", len(parts)) + table + body


def encoded(linear: np.ndarray) -> np.ndarray:
    """Levels of sRGB, as IEC 61966-2-1 defines them."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[reading.ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_an_embedded_profile_makes_the_colours_those_of_srgb(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(IMAGE).save(path, icc_profile=profile(b"RGB ", 563 / 256, ADOBE), **options)
    expected = encoded((IMAGE / 255.0) ** (563 / 256) @ (np.linalg.inv(S_RGB) @ ADOBE).T)
    assert np.abs(read_image(path) - expected).max() <= 2
    assert np.abs(IMAGE - expected).max() > 15, "what it was read as before"


def test_a_grey_image_with_a_grey_profile_has_the_greys_of_srgb(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile(b"GRAY", 1.5))
    read = read_image(tmp_path / "a.png")
    assert np.abs(read[..., 0] - encoded((grey / 255.0) ** 1.5)).max() <= 2
    assert (read[..., :1] == read).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_pixels_that_are_srgb_stay_as_they_are_to_the_bit(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(IMAGE).convert(mode)
    image.save(tmp_path / "bare.png")
    image.save(tmp_path / "said.png", icc_profile=SRGB)
    assert np.array_equal(read_image(tmp_path / "said.png"), read_image(tmp_path / "bare.png"))


def test_a_cmyk_image_has_the_colours_of_its_profile_or_those_of_pillow(tmp_path: Path) -> None:
    cmyk = Image.fromarray(IMAGE).convert("CMYK")
    cmyk.save(tmp_path / "bare.tif")
    assert np.array_equal(read_image(tmp_path / "bare.tif"), np.asarray(cmyk.convert("RGB")))
    cmyk.save(tmp_path / "rgb.tif", icc_profile=SRGB)
    with pytest.raises(
        InputError, match=r"rgb\.tif: a colour profile for RGB on pixels of mode CMYK; fix: save it as sRGB"
    ):
        read_image(tmp_path / "rgb.tif")


@pytest.mark.parametrize(
    ("icc", "said"),
    [
        (b"no profile", "cannot be read"),
        (SRGB[:200], "cannot be read"),
        (profile(b"Lab ", 1.0), "cannot be read"),
        (profile(b"GRAY", 1.5), "a colour profile for L on pixels of mode RGB"),
    ],
)
def test_a_profile_that_cannot_be_used_is_named(tmp_path: Path, icc: bytes, said: str) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png", icc_profile=icc)
    with pytest.raises(InputError, match=rf"a\.png: .*{said}"):
        read_image(tmp_path / "a.png")


def _with_chunk(path: Path, kind: bytes, body: bytes) -> None:
    data = path.read_bytes()
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data[:33] + chunk + data[33:])


@pytest.mark.parametrize(("gamma", "read"), [(0.45455, True), (1.0, False), (0.55556, False)])
def test_a_png_of_another_curve_is_named(tmp_path: Path, gamma: float, read: bool) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    _with_chunk(tmp_path / "a.png", b"gAMA", struct.pack(">I", round(gamma * 100000)))
    if read:
        assert np.array_equal(read_image(tmp_path / "a.png"), IMAGE)
        return
    with pytest.raises(InputError, match=r"a\.png: a curve \(gAMA\) of "):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    ("space", "interoperability", "read"),
    [(65535, "R03", False), (2, None, False), (1, "R98", True), (65535, None, True), (1, None, True)],
)
def test_colours_that_exif_calls_adobe_rgb_are_not_taken_for_srgb(
    tmp_path: Path, ending: str, space: int, interoperability: str | None, read: bool
) -> None:
    file, exif = tmp_path / f"a.{ending}", turned(6)
    exif.get_ifd(0x8769).update({0xA001: space} | ({0xA005: {1: interoperability}} if interoperability else {}))
    Image.fromarray(IMAGE).save(file, exif=exif)
    if read:
        assert read_image(file).shape == (40, 30, 3)
    else:
        with pytest.raises(InputError, match="EXIF says Adobe RGB"):
            read_image(file)
        if ending != "webp":
            with pytest.raises(InputError, match="EXIF says Adobe RGB"):
                without_metadata(file.read_bytes(), file)
    Image.fromarray(IMAGE).save(file, exif=exif, icc_profile=SRGB)
    assert read_image(file).shape == (40, 30, 3), "a profile says it better"


@pytest.mark.parametrize("green", [(0.21, 0.71), (0.265, 0.69), (0.3, 0.6), (0.30001, 0.6)])
def test_a_png_of_other_primaries_is_named(tmp_path: Path, green: tuple[float, float]) -> None:
    known = (0.3127, 0.329, 0.64, 0.33, *green, 0.15, 0.06)
    data = struct.pack(">8I", *(round(100_000 * value) for value in known))
    chunk = struct.pack(">I", 32) + b"cHRM" + data + struct.pack(">I", zlib.crc32(b"cHRM" + data))
    for picture in (Image.fromarray(IMAGE), Image.fromarray(IMAGE[..., 0])):
        picture.save(tmp_path / "a.png")
        whole = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
        if picture.mode == "L" or green[1] == 0.6:
            assert read_image(tmp_path / "a.png").shape == IMAGE.shape
        else:
            with pytest.raises(InputError, match=r"primaries \(cHRM\)"):
                read_image(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_kind_of_file_that_exif_turns_is_refused_with_a_mask_and_upright_without(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(ending, {})
    Image.fromarray(IMAGE).save(tmp_path / f"a.{ending}", exif=turned(orientation), **options)
    expected = np.rot90(IMAGE, -1) if orientation == 6 else IMAGE
    read = read_image(tmp_path / f"a.{ending}")
    assert read.shape == expected.shape and np.abs(read.astype(int) - expected).max() <= (12 if ending == "jpg" else 0)
    if orientation == 1:
        read_image(tmp_path / f"a.{ending}", has_mask=True)
    else:
        with pytest.raises(InputError, match="EXIF orientation 6 turns this image"):
            read_image(tmp_path / f"a.{ending}", has_mask=True)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_mask_that_exif_turns_is_refused(tmp_path: Path, ending: str) -> None:
    Image.fromarray(MASK).save(tmp_path / f"m.{ending}", exif=turned(1))
    assert np.array_equal(read_mask(tmp_path / f"m.{ending}"), MASK // 255)
    Image.fromarray(MASK).save(tmp_path / f"m.{ending}", exif=turned(3))
    with pytest.raises(InputError, match="EXIF orientation 3 turns this mask"):
        read_mask(tmp_path / f"m.{ending}")


@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_whose_palette_is_one_colour_is_neither_empty_nor_full(tmp_path: Path, colour: int) -> None:
    mask = Image.fromarray(MASK // 255).convert("P")
    mask.putpalette([colour] * 6)
    mask.save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png: its palette shows all of its 2 values in one colour"):
        read_mask(tmp_path / "m.png")
    empty = Image.fromarray(np.zeros_like(MASK)).convert("P")  # of one value, which is a mask
    empty.putpalette([colour] * 6)
    empty.save(tmp_path / "one.png")
    assert (read_mask(tmp_path / "one.png") == colour // 255).all()


def test_what_is_said_of_a_broken_file_names_the_file_and_repeats(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    said = []
    for _ in range(2):
        held = [io.BytesIO() for _ in range(3)]  # so that memory is another
        with pytest.raises(InputError) as caught:
            read_image(tmp_path / "a.heic")
        said.append(str(caught.value))
        assert held
    assert said[0] == said[1] and "0x" not in said[0] and "BytesIO" not in said[0] and "a.heic" in said[0]


def _audit(root: Path) -> None:
    raise SystemExit(commands.main(["audit", str(root), "--out", "audited"]))


def _colours(root: Path) -> None:
    baselines.colours(sources.read(root).assign(split="train"), (24, 32))


def _otsu(root: Path) -> None:
    baselines.otsu(sources.read(root).assign(split="val"))


@pytest.mark.parametrize("reader", [_audit, _colours, _otsu])
def test_baselines_and_audit_refuse_a_turned_image_with_a_mask_as_training_does(
    tmp_path: Path, reader: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataverse(tmp_path / "data", lesions=7)
    photo = tmp_path / "data" / "HAM10000_images_part_1" / "ISIC_0000002.jpg"
    Image.fromarray(IMAGE).save(photo, exif=turned(6))
    with pytest.raises((InputError, SystemExit)) as caught:
        reader(tmp_path / "data")
    said = str(caught.value) + capsys.readouterr().err
    assert "ISIC_0000002.jpg: EXIF orientation 6 turns this image" in said
