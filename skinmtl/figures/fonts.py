"""Names as figures can draw them: as they are written, in fonts that have their letters, or by place in a list."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

log = logging.getLogger(__name__)

LONGEST = 40  # letters of a name; longer ones leave no room for what they name
NO_LETTERS = "lastresort"  # a font that has a box for everything

P = ParamSpec("P")
R = TypeVar("R")


def unstyled(draw: Callable[P, R]) -> Callable[P, R]:
    """Have a function draw in matplotlib's own style, whatever a matplotlibrc or a notebook has set.

    A dark background or another font would change every figure, and `text.usetex` ends where there is no LaTeX.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            return draw(*args, **kwargs)

    return drawn


@unstyled
def labels(names: Sequence[str]) -> tuple[str, ...]:
    """Names for a figure: as they are, a long one with its middle left out; `class 3` where no font has its letters.

    The number is a name's place in the list, counted from 1. What could not be drawn is said once.
    """
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}" for name in names]
    lost = _say_lost(tuple(names))
    return tuple(
        f"class {place}" if name in lost or shown.count(short) > 1 else short
        for place, (name, short) in enumerate(zip(names, shown, strict=True), 1)
    )


def letter(figure: Figure) -> None:
    """Have a figure's words drawn as written: `$` is no mathematics, other fonts help out where one lacks letters."""
    words = [text for text in figure.findobj(Text) if text.get_text() and r"\mathdefault" not in text.get_text()]
    fallbacks, found, lost = _fonts("".join(sorted({letter for text in words for letter in text.get_text()})))
    for text in words:
        text.set_parse_math(False)
        if found & set(text.get_text()):
            text.set_fontfamily([*matplotlib.rcParams["font.family"], *fallbacks])
        if lost & set(text.get_text()):
            text.set_text("".join(_instead(letter) if letter in lost else letter for letter in text.get_text()))


def _instead(letter: str) -> str:
    """A box, or nothing for what has no width."""
    return "" if unicodedata.category(letter) in ("Cc", "Cf", "Mn", "Me") else "\N{WHITE SQUARE}"


@cache
def _say_lost(names: tuple[str, ...]) -> frozenset[str]:
    """Those of some names that no font can draw."""
    lost = _fonts("".join(sorted(set("".join(names)))))[2]
    found = {name: place for place, name in enumerate(names, 1) if lost & set(name) or not name.strip()}
    if found:
        words = ", ".join(f"class {place} for {name!r}" for name, place in list(found.items())[:8])
        log.warning("figures: no font on this machine draws all of its classes' names, so they have %s", words)
        log.warning("figures: fix: install fonts, such as fonts-noto-cjk, then `skinmtl evaluate <run>`")
    return frozenset(found)


@cache
def _fonts(letters: str) -> tuple[tuple[str, ...], frozenset[str], frozenset[str]]:
    """Further fonts by name, as few as have all of these letters; the letters that they are for; and those of none."""
    further = missing = _missing(font_manager.findfont(FontProperties()), letters)
    chosen: list[str] = []
    if not missing:
        return (), missing, missing
    _look_for_new()
    plain = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and font.variant == "normal"]
    plain.sort(key=lambda font: (abs(_weight(font.weight) - 400), font.fname))
    fonts = {font.fname: font.name for font in reversed(plain)}  # a file's first name
    lacking = {file: _missing(file, missing) for file in fonts if NO_LETTERS not in Path(file).name.lower()}
    while missing and lacking:
        best = min(lacking, key=lambda file: len(lacking[file] & missing))
        if missing <= lacking[best]:
            break
        missing &= lacking[best]
        chosen.append(fonts[best])
    return tuple(chosen), further - missing, missing


def _missing(file: str, letters: Iterable[str]) -> frozenset[str]:
    """Letters that a font does not have; of one that cannot be read, all."""
    try:
        font = font_manager.get_font(file)
    except (OSError, RuntimeError):
        return frozenset(letters)
    return frozenset(letter for letter in letters if letter != "\n" and not font.get_char_index(ord(letter)))


def _look_for_new() -> None:
    """Add fonts that came after matplotlib wrote its list, once a machine."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            font_manager.fontManager.addfont(file)
        except (OSError, RuntimeError):  # bitmap fonts and broken files
            log.debug("no font that can be drawn with: %s", file)


def _weight(weight: str | int) -> int:
    return weight if isinstance(weight, int) else int(font_manager.weight_dict.get(weight, 400))
