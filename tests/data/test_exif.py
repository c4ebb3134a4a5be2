"""Metadata is gone from the bytes, and the pixels are those that were there."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import make_image
from PIL import Image, PngImagePlugin

from skinmtl.data.images.reading import read_image
from skinmtl.data.prepare.exif import without_metadata
from skinmtl.errors import InputError

NAME = b"Jane Roe, record 4711"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
XMP += b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="8">%b</rdf:Description>' % NAME
XMP += b"</rdf:RDF></x:xmpmeta>"


def exif(orientation: int | None = None) -> Image.Exif:
    block = Image.Exif()
    block[0x010E] = block[0x013B] = NAME.decode()  # description, artist
    block.get_ifd(0x8825)[1] = "N"  # GPS
    block.get_ifd(0x8825)[2] = (48.0, 12.0, 30.0)
    if orientation is not None:
        block[0x0112] = orientation
    return block


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(make_image(0)[0]).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def planted(data: bytes) -> bytes:
    """The JPEG with a name in every kind of segment that can hold one, in front, between scans and behind the end."""
    bodies = {0xE0: b"JFXX\0", 0xE1: b"http://ns.adobe.com/xap/1.0/\0", 0xE2: b"FPXR\0", 0xE3: b"", 0xEC: b"Ducky"}
    bodies |= {0xED: b"Photoshop 3.0\0008BIM\4\4", 0xEF: b"", 0xFE: b""}
    extra = b"".join(segment(marker, body + NAME) for marker, body in bodies.items())
    last_scan = data.rindex(b"\xff\xda")
    front = 2 + 2 + struct.unpack(">H", data[4:6])[0]  # behind the start and the first segment
    return data[:front] + extra + data[front:last_scan] + segment(0xFE, NAME) + data[last_scan:] + NAME


def pixels(data: bytes, folder: Path) -> np.ndarray:
    path = folder / "image"
    path.write_bytes(data)
    return read_image(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0, "quality": 95},
        {"restart_marker_blocks": 1},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"dpi": (300, 300)},
        {"optimize": True},
    ],
    ids=str,
)
def test_a_jpeg_loses_every_word_and_no_pixel(tmp_path: Path, options: dict) -> None:
    data = planted(jpeg(**options, exif=exif(), comment=NAME, xmp=XMP.replace(b"Orientation", b"Software")))
    assert data.count(NAME) >= 12
    clean = without_metadata(data, tmp_path)
    assert NAME not in clean
    assert b"Exif" not in clean
    np.testing.assert_array_equal(pixels(clean, tmp_path), pixels(data, tmp_path))
    assert without_metadata(clean, tmp_path) == clean == jpeg(**options)


@pytest.mark.parametrize("orientation", range(9))
def test_an_orientation_that_turns_the_picture_stays_alone(tmp_path: Path, orientation: int) -> None:
    data = jpeg(exif=exif(orientation))
    clean = without_metadata(data, tmp_path)
    assert NAME not in clean
    assert (b"Exif" in clean) == (orientation > 1)
    np.testing.assert_array_equal(pixels(clean, tmp_path), pixels(data, tmp_path))
    found = Image.open(io.BytesIO(clean)).getexif()
    assert dict(found) == ({0x0112: orientation} if orientation > 1 else {})
    assert not found.get_ifd(0x8825)
    assert without_metadata(clean, tmp_path) == clean


def test_the_turned_picture_differs_so_that_keeping_it_means_something(tmp_path: Path) -> None:
    assert pixels(jpeg(exif=exif(6)), tmp_path).shape != pixels(jpeg(), tmp_path).shape


def test_an_orientation_that_only_xmp_says_is_kept_as_the_decoder_sees_it(tmp_path: Path) -> None:
    data = jpeg(xmp=XMP)
    np.testing.assert_array_equal(pixels(without_metadata(data, tmp_path), tmp_path), pixels(data, tmp_path))


def test_a_preview_behind_the_image_goes_with_its_index(tmp_path: Path) -> None:
    frames, file = [Image.fromarray(make_image(seed)[0]) for seed in range(2)], io.BytesIO()
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:], exif=exif())
    assert Image.open(io.BytesIO(file.getvalue())).format == "MPO"
    clean = without_metadata(file.getvalue(), tmp_path)
    assert Image.open(io.BytesIO(clean)).format == "JPEG"
    assert NAME not in clean
    np.testing.assert_array_equal(pixels(clean, tmp_path), pixels(file.getvalue(), tmp_path))


def test_the_colour_profile_stays(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clean = without_metadata(jpeg(icc_profile=profile, exif=exif()), tmp_path)
    assert Image.open(io.BytesIO(clean)).info["icc_profile"] == profile


def png(mode: str = "RGB", orientation: int | None = None, behind: bool = False) -> bytes:
    image, file = Image.fromarray(make_image(0)[0]).convert(mode), io.BytesIO()
    words = PngImagePlugin.PngInfo()
    words.add_text("Author", NAME.decode())
    words.add_text("Comment", NAME.decode(), zip=True)
    words.add_itxt("XML:com.adobe.xmp", NAME.decode())
    words.add(b"tIME", bytes(7))
    words.add(b"prIv", NAME)
    image.save(file, "PNG", pnginfo=words, exif=exif(orientation), compress_level=0)
    data = file.getvalue()
    if behind:  # the pixels
        body = exif(orientation).tobytes()[6:]
        at = data.rindex(b"IEND") - 4
        data = data[:at] + struct.pack(">I", len(body)) + b"eXIf" + body
        data += struct.pack(">I", zlib.crc32(b"eXIf" + body)) + file.getvalue()[-12:]
    return data + NAME


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
@pytest.mark.parametrize("orientation", [None, 1, 6])
@pytest.mark.parametrize("behind", [False, True])
def test_a_png_loses_every_word_and_no_pixel(tmp_path: Path, mode: str, orientation: int | None, behind: bool) -> None:
    data = png(mode, orientation, behind)
    clean = without_metadata(data, tmp_path)
    kinds = [bytes(kind) for kind in (b"tEXt", b"zTXt", b"iTXt", b"tIME", b"prIv") if kind in clean]
    assert kinds == []
    assert NAME not in clean
    assert clean.count(b"eXIf") == (orientation == 6)
    np.testing.assert_array_equal(pixels(clean, tmp_path), pixels(data, tmp_path))


def test_a_palette_that_runs_backwards_stays(tmp_path: Path) -> None:
    mask, file = Image.fromarray(make_image(0)[1] // 255).convert("P"), io.BytesIO()
    mask.putpalette([255] * 3 + [0] * 3)
    mask.save(file, "PNG")
    assert without_metadata(file.getvalue(), tmp_path) == file.getvalue()


def test_an_animated_png_stays_animated_and_is_refused_by_the_decoder(tmp_path: Path) -> None:
    frames, file = [Image.fromarray(make_image(seed)[0]) for seed in range(2)], io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="several images"):
        pixels(without_metadata(file.getvalue(), tmp_path), tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"GIF89a" + data,
        lambda data: data[: len(data) // 2],
        lambda data: data[:-2],
        lambda data: data[:3],
        lambda data: data[:20],
        lambda data: data[: len(data) // 2] + bytes(len(data) // 2),
        lambda data: data[:2] + b"\xff\xe1\xff\xff" + data[2:40],
        lambda data: data[:2] + b"\xff\xd8" + data[2:],
    ],
)
@pytest.mark.parametrize("kind", [jpeg, png])
def test_what_cannot_be_followed_is_named(
    tmp_path: Path, spoil: Callable[[bytes], bytes], kind: Callable[[], bytes]
) -> None:
    data = kind().removesuffix(NAME)
    with pytest.raises(InputError, match="image.jpg: ") as caught:
        without_metadata(spoil(data), Path("image.jpg"))
    assert len(str(caught.value).splitlines()) == 1


def test_stray_and_fill_bytes_between_segments_are_passed_over_as_decoders_do(tmp_path: Path) -> None:
    data = jpeg()
    front = 4 + struct.unpack(">H", data[4:6])[0]
    padded = data[:front] + b"\0stray\xff\0\xff\xff" + data[front:]
    assert without_metadata(padded, tmp_path) == data
    np.testing.assert_array_equal(pixels(padded, tmp_path), pixels(data, tmp_path))
