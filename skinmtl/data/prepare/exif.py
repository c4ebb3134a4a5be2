"""Metadata of an image (who took it, where and when), cut from its bytes without touching a pixel."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from skinmtl.data.images import icc_profiles
from skinmtl.data.images.jpeg import BARE, END, MARKER, SCAN, SCAN_END, find_code
from skinmtl.data.images.reading import ORIENTATION, reason
from skinmtl.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"

# What decides how a PNG looks, and the frames of an animated one: without them it would pass for a still picture.
PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"pHYs"}
PNG_KEPT |= {b"acTL", b"fcTL", b"fdAT"}

APPLICATION = {*range(0xE0, 0xF0), 0xFE}  # segments for applications, and comments


def without_metadata(data: bytes, path: Path) -> bytes:
    """Cut EXIF, XMP, IPTC, comments, texts, times, previews and whatever follows its end out of a JPEG or PNG.

    Compressed pixels, tables, colour profile and Adobe's colour marker stay as they are, byte for byte. An EXIF
    orientation that turns the image stays too, alone in a new block, since it decides what the image shows.

    Args:
        data: the file's bytes.
        path: the file, for what is said of it.

    Raises:
        InputError: at `path`, when it is neither, or is not put together as its format says, or says Adobe RGB.
    """
    if not data:
        raise InputError(str(path), "the file is empty", "replace it")
    try:
        if data.startswith(JPEG):
            clean = b"".join(_jpeg(data))
        elif data.startswith(PNG):
            clean = b"".join(_png(data))
        else:
            what = "neither JPEG nor PNG, so its metadata cannot be removed"
            raise InputError(str(path), what, "save it as PNG, or leave it out")
        turned = _orientation(data, path) if clean != data else None
    except (struct.error, IndexError, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(str(path), f"not a whole JPEG or PNG image ({reason(error)})", "replace the file") from error
    if turned is None:
        return clean
    block = _exif(turned)
    if data.startswith(JPEG):
        return JPEG + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block + clean[2:]
    header = len(PNG) + 25  # IHDR comes first and is 25 bytes long
    return clean[:header] + _chunk(b"eXIf", block) + clean[header:]


def _jpeg(data: bytes) -> Iterator[bytes]:
    """The pieces to keep, from the start to the first end of an image: what follows is a preview or a trailer."""
    yield JPEG
    at = len(JPEG)
    while (marker := data[at := find_code(MARKER, data, at)]) != END:
        (length,) = struct.unpack_from(">H", data, at + 1)
        end = at + 1 + length
        if marker in BARE or length < 2 or end > len(data):
            raise ValueError(f"a broken segment at byte {at - 1}")
        if _is_needed(marker, data[at + 3 : end]):
            yield data[at - 1 : end]
        at = end
        if marker == SCAN:
            at = find_code(SCAN_END, data, end) - 1
            yield data[end:at]
    yield b"\xff\xd9"


def _is_needed(marker: int, body: bytes) -> bool:
    if marker not in APPLICATION:
        return True
    kept = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
    return marker in kept and body.startswith(kept[marker])


def _png(data: bytes) -> Iterator[bytes]:
    yield PNG
    at = len(PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + length + 12
        if end > len(data):
            raise ValueError(f"the chunk at byte {at} runs over the end")
        if kind in PNG_KEPT or kind[:1].isupper():  # an unknown chunk that a reader must understand is for it to refuse
            yield data[at:end]
        if kind == b"IEND":
            return
        at = end


def _orientation(data: bytes, path: Path) -> int | None:
    """The EXIF orientation, from wherever the decoder takes it, if it turns the picture.

    Raises:
        InputError: EXIF names other colours than those of sRGB, which nothing would say once it is cut.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        image.load()  # a PNG may say it behind its pixels
        icc_profiles.note_exif(image)
        icc_profiles.check_named(image, path)
        found = image.getexif().get(ORIENTATION, 1)
    return found if isinstance(found, int) and 2 <= found <= 8 else None


def _exif(orientation: int) -> bytes:
    """A block with one entry: tag, type SHORT, count 1, value; then no further directory."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
