"""HTML parts of a page that stands alone: style, tables, figures, notes. No script, nothing from the network."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --tint: #f6f8fa; --blue: #0b5394; }
* { box-sizing: border-box; }
html { background: #fff; color: var(--ink); -webkit-text-size-adjust: 100%; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p, ul { margin: .5rem 0; max-width: 44rem; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; }
.soft, caption, figcaption { color: var(--soft); font-size: .875rem; }
.stamp { margin: 1rem 0; padding: .75rem 1rem; border-left: .5rem solid #b42318; background: #fdeceb; }
.stamp b { display: block; font-size: 1.35rem; letter-spacing: .06em; color: #8c1a10; }
.stamp.made { border-color: #8a5a00; background: #fff5dc; }
.stamp.made b { color: #6b4500; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0 .75rem; }
.card { padding: .8rem 1rem; border: 1px solid var(--line); border-radius: .5rem; background: var(--tint); }
.card span { display: block; color: var(--soft); font-size: .8125rem; line-height: 1.3; }
.card strong { display: block; font-size: 1.7rem; line-height: 1.25; color: var(--blue); }
.card, table { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4; }
caption { text-align: left; padding-bottom: .35rem; caption-side: top; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 400; }
thead th { color: var(--soft); vertical-align: bottom; border-bottom-color: var(--soft); }
.numbers td, .numbers thead th + th { text-align: right; }
.numbers td { white-space: nowrap; }
.numbers tbody th { min-width: 6.5rem; max-width: 20rem; overflow-wrap: anywhere; }
.numbers thead th { max-width: 12rem; overflow-wrap: break-word; }
small { display: block; color: var(--soft); font-size: .75rem; }
.facts td { overflow-wrap: anywhere; }
.facts th { min-width: 7rem; color: var(--soft); }
code { font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.charts, .galleries { margin-top: 1rem; }
figure { margin: 0 0 1.75rem; break-inside: avoid; }
figure img { display: block; width: 100%; max-width: 30rem; height: auto; }
figcaption { margin-top: .4rem; max-width: 30rem; }
@media (min-width: 56rem) {
  body { padding-top: 2.5rem; }
  .charts { columns: 2; column-gap: 2.5rem; }
  .galleries { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1.5rem; align-items: start; }
}
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  .charts { columns: 2; column-gap: 1.5rem; }
  .galleries { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1rem; }
  .stamp, .card { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""

Cell = str | tuple[str, str]  # a text, or a text and what stands below it, smaller

MEDIA = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg"}


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML document from parts that are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def paragraph(text: str, soft: bool = False) -> str:
    """A paragraph of plain text."""
    return f'<p class="soft">{escape(text)}</p>' if soft else f"<p>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def stamp(word: str, text: str, made: bool = False) -> str:
    """A loud note: red, or ochre where `made` says that the data are made up."""
    return f'<div class="stamp{" made" if made else ""}" role="note"><b>{escape(word)}</b>{escape(text)}</div>'


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers, each with what it is above and its interval below."""
    inner = (
        f'<div class="card"><span>{escape(name)}</span><strong>{escape(value)}</strong>'
        f"<span>{escape(below)}</span></div>"
        for name, value, below in items
    )
    return f'<div class="cards">{"".join(inner)}</div>'


def table(head: Sequence[Cell], rows: Iterable[tuple[str, Sequence[Cell]]], caption: str = "") -> str:
    """Numbers under a heading, in named rows. Too wide a table scrolls within itself.

    Args:
        head: what the rows are, then the columns.
        rows: a name and its cells.
        caption: stands above.
    """
    top = "".join(f'<th scope="col">{_cell(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in cells) + "</tr>"
        for name, cells in rows
    )
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table class="numbers">{named}<thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    large, small = cell
    return f"{escape(large)}<small>{escape(small)}</small>" if small else escape(large)


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, without a heading; long values break."""
    body = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<div class="scroll"><table class="facts"><tbody>{body}</tbody></table></div>'


def picture(path: Path, caption: str) -> str:
    """A figure with its file inside the page."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    source = f"data:{MEDIA[path.suffix]};base64,{content}"
    # The caption says everything; a reader of screens should hear it once.
    name = escape(path.stem.replace("_", " "))
    return f'<figure><img src="{source}" alt="{name}"><figcaption>{escape(caption)}</figcaption></figure>'


def pictures(kind: str, figures: Iterable[str]) -> str:
    """Figures together: "charts" in two columns of a wide page, "galleries" in three."""
    return f'<div class="{kind}">{"".join(figures)}</div>'
