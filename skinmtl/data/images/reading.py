"""The one module that decodes images and masks, in training and in prediction alike."""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from skinmtl.data.images import icc_profiles, jpeg
from skinmtl.data.mask_classes import BINARY, MaskClasses
from skinmtl.errors import InputError

cv2.setNumThreads(0)  # parallelism is over images; OpenCV's own threads would fight with the workers

# A line on stderr at 89 million pixels, to which the refusal below adds what to do.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

MAX_PIXELS = 50_000_000  # a small file can claim gigabytes of pixels; the largest dermatoscopic images have 24 M
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
LOSSLESS = ("PNG", "BMP", "TIFF")
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = (0, 1)  # its values that turn nothing; 0 is said where nobody knew

Size = tuple[int, int]  # (height, width) in pixels


def read_image(path: Path, has_mask: bool = False) -> NDArray[np.uint8]:
    """Decode an image, in sRGB and turned upright as its EXIF orientation says.

    Grey, CMYK, palette and opaque-alpha files become RGB, and an embedded colour profile makes them sRGB; transparent
    and 16-bit ones, and those that are said to be of other colours without a profile, are refused, because nobody said
    what their pixels should look like.

    Args:
        path: the file.
        has_mask: whether there is a mask. An image that EXIF turns is then refused, too: nothing tells whether its mask
            fits the stored or the turned image.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        InputError: naming the file, when it cannot be decoded whole.
    """
    image, orientation = _open(path, FORMATS)
    if has_mask and orientation not in UPRIGHT:
        what = f"EXIF orientation {orientation} turns this image; its mask may be turned with it or not"
        raise InputError(str(path), what, "save both upright, without EXIF orientation")
    icc_profiles.check_named(image, path)
    upright = image if orientation in UPRIGHT else ImageOps.exif_transpose(image)
    return np.asarray(_rgb(upright, path), dtype=np.uint8)


def read_pair(image: str, mask: object) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Decode an image and its mask, as `read_image` and `read_mask` do.

    Args:
        image: the image's file.
        mask: the mask's file; anything that is no text, such as None or NaN in a table, for no mask.

    Returns:
        The image (H, W, 3) uint8 and the mask (H, W) uint8 in {0, 1}, or None.

    Raises:
        InputError: as `read_image` and `read_mask`.
    """
    pixels = read_image(Path(image), has_mask=isinstance(mask, str))
    if not isinstance(mask, str):
        return pixels, None
    return pixels, read_mask(Path(mask), size=(pixels.shape[0], pixels.shape[1]))


def read_mask(path: Path, size: Size | None = None) -> NDArray[np.uint8]:
    """Decode a mask through its palette.

    402 published HAM10000 masks have a palette that runs backwards: their indices are the inverted mask.

    Args:
        path: the file, in a lossless format, with values {0, 1} or {0, 255}.
        size: the image's (height, width) in pixels, which the mask must have; None for any.

    Returns:
        (H, W) uint8, 1 on the lesion and 0 elsewhere.

    Raises:
        InputError: naming the file, when it is lossy, not two-valued, turned by EXIF, or not of that size.
    """
    image, orientation = _open(path, LOSSLESS)
    if orientation not in UPRIGHT:
        what = f"EXIF orientation {orientation} turns this mask; its image may be turned with it or not"
        raise InputError(str(path), what, "save both upright, without EXIF orientation")
    if image.mode not in ("1", "L", "P", "RGB"):
        raise InputError(
            str(path), f"a mask of mode {image.mode}", "save it as an 8-bit grey PNG with values 0 and 255"
        )
    pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB" if image.mode in ("P", "RGB") else "L"))
    mask = pixels if pixels.ndim == 2 else _one_channel(pixels, path)
    if size is not None and mask.shape != tuple(size):
        what = f"the mask is {image.width} x {image.height} pixels, its image {size[1]} x {size[0]}"
        raise InputError(str(path), what, "give the mask that belongs to this image")

    if image.mode == "P" and mask.min() == mask.max() and len(several := np.unique(np.asarray(image))) > 1:
        what = f"its palette shows all of its {len(several)} values in one colour"
        raise InputError(str(path), what, "save it as an 8-bit grey PNG with values 0 and 255")
    top = int(mask.max())
    if top not in (0, 1, 255) or bool(((mask != 0) & (mask != top)).any()):
        found = np.unique(mask)
        shown = ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")
        raise InputError(str(path), f"mask values {shown}", "use only {0, 1} or {0, 255}, in a lossless file")
    lesion: NDArray[np.uint8] = (mask != 0).astype(np.uint8)
    return lesion


def read_fitted(
    image: str, mask: str | None, size: Size, mask_classes: MaskClasses = BINARY
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decode an image and its mask classes, at network size.

    The classes are derived at the image's own size, then resized.

    Args:
        image: the image's file.
        mask: the mask's file; None for no mask.
        size: (height, width) in pixels.
        mask_classes: what a pixel can be.

    Returns:
        The image (H, W, 3) uint8, and the class of each pixel (H, W) uint8; zeros where there is no mask.

    Raises:
        InputError: as `read_image` and `read_mask`.
    """
    pixels, lesion = read_pair(image, mask)
    if lesion is None:
        return fit_image(pixels, size), np.zeros(size, dtype=np.uint8)
    return fit_image(pixels, size), fit_mask(mask_classes.of(lesion), size)


def fit_image(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize an image: by means over areas when it shrinks, bilinear when it grows.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) in pixels.
    """
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size[1], size[0]), interpolation=how).astype(np.uint8, copy=False)


def fit_mask(mask: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize a mask by the nearest pixel, so that no value appears that was not there.

    Args:
        mask: (H, W) uint8.
        size: (height, width) in pixels.
    """
    if mask.shape == tuple(size):
        return mask
    return cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)


def _open(path: Path, formats: tuple[str, ...]) -> tuple[Image.Image, int]:
    """Open a file with all its pixels loaded, and read its EXIF orientation.

    A TIFF says its orientation before it is decoded, for Pillow's decoder turns the pixels by it and forgets it; a PNG
    may say it behind its pixels.
    """
    data = _bytes(path)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        if image.width * image.height > MAX_PIXELS:
            raise InputError(str(path), f"{image.width} x {image.height} pixels", f"use at most {MAX_PIXELS:,} pixels")
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # MPO: a JPEG with a preview, the first counts
            raise InputError(str(path), "several images in one file", "save the one that is meant")
        if _bits(image, data) > 8:
            raise InputError(str(path), "more than 8 bits a channel", "save it with 8 bits, scaled as you mean it")
        before = image.getexif().get(ORIENTATION, 1)
        icc_profiles.note_exif(image)
        _load(image, data)
        orientation = image.getexif().get(ORIENTATION, 1) if before in UPRIGHT else before
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(str(path), f"far more than {MAX_PIXELS:,} pixels", "save it smaller") from error
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error and more on broken files
        what = f"not a whole {' or '.join(formats)} image ({reason(error)})"
        raise InputError(str(path), what, "replace the file; nothing is put in its place") from error
    return image, orientation


def reason(error: Exception) -> str:
    """Say in one line what a decoder says; where it knows nothing of the file, it would name our memory instead."""
    if isinstance(error, UnidentifiedImageError):
        return "its bytes are of no such image"
    return " ".join(str(error or type(error).__name__).split())


def _bytes(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise InputError(str(path), "not a file", "give an image")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), error.strerror or "cannot be read", "check the path and its permissions") from error
    if not data:
        raise InputError(str(path), "the file is empty", "replace it")
    return data


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits a channel where a format may have more than 8, of which Pillow would keep the upper alone."""
    if image.format == "PNG":
        return data[24]
    return max(image.tag_v2.get(258, (1,))) if isinstance(image, TiffImageFile) else 8


def _load(image: Image.Image, data: bytes) -> None:
    """Decode a file that has all its bytes: PIL decodes a JPEG whose second half is zeros without a word."""
    if image.format == "PNG" and b"IEND" not in data[-1024:]:
        raise ValueError("its end is missing")
    end = jpeg.end_of(data) if image.format in ("JPEG", "MPO") else 0
    image.load()
    if end and jpeg.wants_more(image, data, end):
        raise ValueError("cut off")


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise InputError(str(path), "transparent pixels", "save it without an alpha channel")
        image = image.convert("L" if image.mode in ("L", "LA") else "RGB")
    elif image.mode not in ("RGB", "L", "1", "P", "CMYK", "YCbCr"):
        raise InputError(str(path), f"pixels of mode {image.mode}", "save it as an 8-bit RGB image")
    return icc_profiles.in_srgb(image, path)


def _one_channel(pixels: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    if not np.array_equal(pixels[..., 0], pixels[..., 1]) or not np.array_equal(pixels[..., 0], pixels[..., 2]):
        raise InputError(str(path), "a mask in colours", "save it as an 8-bit grey PNG with values 0 and 255")
    return np.ascontiguousarray(pixels[..., 0])
