"""Image formats: which are read, which are known and refused, by a file's ending and by how it begins."""

from __future__ import annotations

from pathlib import Path

DATASET_ENDINGS = (".jpg", ".jpeg", ".png")  # of images in a data set: its layouts name files without an ending
ENDINGS = (*DATASET_ENDINGS, ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
# Not read here, for nobody said what their pixels should look like: such a file is named, never skipped silently.
UNSUPPORTED = {
    "HEIC": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
    "GIF": (".gif",),
    "JPEG 2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "JPEG XL": (".jxl",),
    "raw": (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    "Photoshop": (".psd", ".psb"),
    "SVG": (".svg",),
    "DICOM": (".dcm", ".dicom"),
}
UNSUPPORTED_ENDINGS = {ending: kind for kind, endings in UNSUPPORTED.items() for ending in endings}
# How files begin, at which byte.
SIGNATURES = ((0, b"\xff\xd8\xff"), (0, b"\x89PNG\r\n\x1a\n"), (0, b"II*\0"), (0, b"MM\0*"), (8, b"WEBP"))
UNSUPPORTED_SIGNATURES = (
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")),
    *((4, b"ftyp" + brand, "AVIF") for brand in (b"avif", b"avis")),
    (0, b"GIF8", "GIF"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (128, b"DICM", "DICOM"),
)
OTHER_SIGNATURES = (
    (0, b"%PDF", "a PDF"),
    *((0, start, "an archive") for start in (b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")),
    (257, b"ustar", "an archive"),
)
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes; two letters alone begin many a text
HEAD = 264  # bytes from which on no signature begins


def is_image(head: bytes) -> bool:
    """Tell whether a file begins as an image in a format that is read.

    Args:
        head: its first `HEAD` bytes, or all of a smaller file.
    """
    bmp = head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS
    return bmp or any(head.startswith(start, place) for place, start in SIGNATURES)


def unsupported_kind(head: bytes) -> str | None:
    """Name the format that is not read in which a file begins; None for everything else.

    Args:
        head: its first `HEAD` bytes, or all of a smaller file.
    """
    return next((kind for place, start, kind in UNSUPPORTED_SIGNATURES if head.startswith(start, place)), None)


def other_kind(head: bytes) -> str | None:
    """Say what kind of file begins so that is no image at all, such as a PDF; None where it is not known.

    Args:
        head: its first `HEAD` bytes, or all of a smaller file.
    """
    return next((kind for place, start, kind in OTHER_SIGNATURES if head.startswith(start, place)), None)


def read_head(file: Path) -> bytes:
    """Read the first bytes of a regular file, as many as tell its format.

    Args:
        file: any path; where it cannot be read, there are no bytes.
    """
    try:
        if not file.is_file():  # opening a pipe would wait for ever
            return b""
        with file.open("rb") as content:
            return content.read(HEAD)
    except OSError:
        return b""
