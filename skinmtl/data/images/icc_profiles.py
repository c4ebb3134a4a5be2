"""Colour profiles: an image's colours, as its file defines them, in sRGB. Decoders leave that undone."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms

from skinmtl.errors import InputError

FIX = "save it as sRGB"
SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # of a profile, and Pillow's mode of pixels in it
SAME = 2  # levels by which a profile may differ from sRGB and still be it: the same curve is written in several ways
GAMMA, OFF = 1 / 2.2, 0.02  # what a PNG without a profile says of its curve, and how far it may be from sRGB's
# White, red, green and blue, x and y each, as a PNG's cHRM has them.
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
APART = 0.01  # by which a coordinate may differ; writers round
COLOUR_SPACE, INTEROPERABILITY = 0xA001, 0xA005  # in EXIF; cameras say Adobe RGB there and embed no profile
SRGB, ADOBE_RGB = 1, (2, "R03")  # what stands in them; the 2 by some makers alone
SAYS_ADOBE_RGB = "says_adobe_rgb"
WAY = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION  # as photographers convert


def note_exif(image: Image.Image) -> None:
    """Note in an image's `info` whether its EXIF says Adobe RGB.

    Args:
        image: opened and not yet loaded, for a TIFF forgets its EXIF then.
    """
    exif = image.getexif()
    with suppress(Exception):  # Pillow raises all sorts where the inner parts of EXIF are broken: they say nothing then
        space = exif.get_ifd(ExifTags.IFD.Exif).get(COLOUR_SPACE)
        kind = str(exif.get_ifd(INTEROPERABILITY).get(1, "")).strip("\0 ")
        image.info[SAYS_ADOBE_RGB] = space == ADOBE_RGB[0] or (kind == ADOBE_RGB[1] and space != SRGB)


def check_named(image: Image.Image, path: Path) -> None:
    """Refuse an image without a profile whose file says in other ways that its colours are not those of sRGB.

    Args:
        image: the decoded image, after `note_exif`.
        path: its file, for the message.

    Raises:
        InputError: its EXIF says Adobe RGB, or its primaries (cHRM) are others.
    """
    if image.info.get("icc_profile") or image.mode in ("L", "LA", "1", "CMYK"):
        return
    if image.info.get(SAYS_ADOBE_RGB):
        raise InputError(str(path), "its EXIF says Adobe RGB, and no colour profile is embedded", FIX)
    primaries = image.info.get("chromaticity")
    if primaries and "srgb" not in image.info and np.abs(np.subtract(primaries, SRGB_PRIMARIES)).max() > APART:
        raise InputError(str(path), "primaries (cHRM) that are not those of sRGB", FIX)


def in_srgb(image: Image.Image, path: Path) -> Image.Image:
    """Convert a decoded image to RGB in sRGB.

    Pixels with an embedded ICC profile are converted by it (relative colorimetric, with black point compensation); a
    profile that is sRGB but for rounding leaves them as they are. Pixels without one are taken for sRGB; CMYK without
    one is converted as Pillow does, by no ink's colours.

    Args:
        image: the decoded image, in a mode of Pillow that has a profile's colours (L, RGB, CMYK) or becomes them.
        path: its file, for messages.

    Raises:
        InputError: naming the file, whose profile is broken, or is for other pixels; or whose curve is not sRGB's.
    """
    icc = image.info.get("icc_profile")
    if not icc:
        gamma = image.info.get("gamma")
        if gamma is not None and "srgb" not in image.info and abs(gamma - GAMMA) > OFF:
            raise InputError(str(path), f"a curve (gAMA) of {gamma:g}, where sRGB's is {GAMMA:.3f}", FIX)
        return image.convert("RGB")
    try:
        mode, transform = _transform(icc)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise InputError(str(path), "its colour profile cannot be read", FIX) from error
    if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and image.mode not in ("L", "1")):
        raise InputError(str(path), f"a colour profile for {mode} on pixels of mode {image.mode}", FIX)
    image = image.convert(mode)
    if transform is None:
        return image.convert("RGB")
    done = transform.apply(image)
    assert done is not None
    return done


@lru_cache(maxsize=8)
def _transform(icc: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return the mode of pixels that a profile is for, and what makes them sRGB; None where they are that already.

    Raises:
        ImageCms.PyCMSError, OSError, ValueError: it is broken, or of no such pixels.
    """
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = profile.profile.xcolor_space.strip()
    if space not in SPACES:
        raise ValueError(space)
    mode = SPACES[space]
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", *WAY)
    if mode == "CMYK":
        return mode, transform
    before = _colours(mode)
    after = transform.apply(before)
    assert after is not None
    apart = np.abs(np.asarray(after, np.int16) - np.asarray(before.convert("RGB"), np.int16)).max()
    return mode, None if apart <= SAME else transform


def _colours(mode: str) -> Image.Image:
    """Return an image of colours of every kind, in steps that no curve hides between."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3))
