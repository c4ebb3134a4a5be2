"""Colours as a photograph's file defines them, made those of sRGB, which decoders leave undone."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from skinmtl.errors import InputError

FIX = "save it as sRGB"
SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # of a profile, and Pillow's mode of pixels in it
SAME = 2  # levels by which a profile may differ from sRGB and still be it: the same curve is written in several ways
GAMMA, OFF = 1 / 2.2, 0.02  # what a PNG without a profile says of its curve, and how far it may be from sRGB's
WAY = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION  # as photographers convert


def in_srgb(image: Image.Image, path: Path) -> Image.Image:
    """The decoded photograph as RGB in sRGB.

    Pixels with an embedded ICC profile are converted by it (relative colorimetric, with black point compensation); a
    profile that is sRGB but for rounding leaves them as they are. Pixels without one are taken for sRGB; CMYK without
    one is converted as Pillow does, by no ink's colours.

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
    """The mode of pixels that a profile is for, and what makes them sRGB; None where they are that already.

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
    """Colours of every kind, in steps that no curve hides between."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3))
