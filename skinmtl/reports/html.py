"""Parts of a page that stands alone: tables, figures, notes. The HTML itself is in templates/."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

Cell = str | tuple[str, str]  # a text, or a text and what stands below it, smaller

MEDIA = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}

_templates = Environment(
    loader=PackageLoader(__name__),
    autoescape=True,  # whatever a file's name or a class's name holds, it stays text
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def page(title: str, parts: Iterable[str]) -> str:
    """Render a whole HTML document.

    Args:
        title: of the window.
        parts: what stands on it, as the functions below give it; a plain text is escaped.
    """
    return _templates.get_template("page.html").render(title=title, parts=parts)


def _part(name: str, /, **content: object) -> Markup:
    return Markup(getattr(_templates.get_template("parts.html").module, name)(**content))


def heading(title: str) -> Markup:
    """Render the heading of a page."""
    return _part("heading", title=title)


def section(title: str, *parts: str) -> Markup:
    """Render a heading and what stands below it; empty parts are left out."""
    return _part("section", title=title, parts=parts)


def paragraph(text: str, soft: bool = False) -> Markup:
    """Render a paragraph of plain text; `soft` is smaller and grey."""
    return _part("paragraph", text=text, soft=soft)


def bullets(texts: Iterable[str]) -> Markup:
    """Render a list of plain texts."""
    return _part("bullets", texts=texts)


def stamp(word: str, text: str, made: bool = False) -> Markup:
    """Render a loud note: red, or ochre where `made` says that the data are synthetic."""
    return _part("stamp", word=word, text=text, made=made)


def cards(items: Iterable[tuple[str, str, str]]) -> Markup:
    """Render large numbers, each with what it is above and its interval below."""
    return _part("cards", items=items)


def table(head: Sequence[Cell], rows: Iterable[tuple[str, Sequence[Cell]]], caption: str = "") -> Markup:
    """Render numbers under a heading, in named rows. Too wide a table scrolls within itself.

    Args:
        head: what the rows are, then the columns.
        rows: a name and its cells.
        caption: stands above.
    """
    return _part("table", head=head, rows=rows, caption=caption)


def facts(rows: Iterable[tuple[str, str]]) -> Markup:
    """Render names and what they are, without a heading; long values break."""
    return _part("facts", rows=rows)


def picture(path: Path, caption: str) -> Markup:
    """Render a figure with its file inside the page.

    Args:
        path: an .svg, .png or .jpg file.
        caption: stands below.
    """
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:{MEDIA[path.suffix]};base64,{content}"
    return _part("picture", source=source, name=path.stem.replace("_", " "), caption=caption)


def pictures(kind: str, figures: Iterable[str]) -> Markup:
    """Render figures together: "charts" in two columns of a wide page, "galleries" in three."""
    return _part("pictures", kind=kind, figures=figures)
