"""Parts of a page: whatever a name holds, it stays text."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from skinmtl.reports import html

ODD = """<b onclick='x("y")'>ü & {{ 7 * 7 }}{% raise %}</b><script>alert(1)</script>"""


class Reader(HTMLParser):
    """What a browser would make of it: elements with their attributes, and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str | None] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [value for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def odd_picture(folder: Path) -> str:
    file = folder / f"{ODD.replace('/', '')}.png"
    file.write_bytes(b"png")
    return html.picture(file, ODD)


PARTS: dict[str, Callable[[Path], str]] = {
    "page": lambda _: html.page(ODD, [ODD]),
    "heading": lambda _: html.heading(ODD),
    "section": lambda _: html.section(ODD, ODD),
    "paragraph": lambda _: html.paragraph(ODD, soft=True),
    "bullets": lambda _: html.bullets([ODD]),
    "stamp": lambda _: html.stamp(ODD, ODD, made=True),
    "cards": lambda _: html.cards([(ODD, ODD, ODD)]),
    "table": lambda _: html.table([ODD, (ODD, ODD)], [(ODD, [ODD, (ODD, ODD)])], ODD),
    "facts": lambda _: html.facts([(ODD, ODD)]),
    "picture": odd_picture,
    "pictures": lambda _: html.pictures(ODD, [ODD]),
}


@pytest.mark.parametrize("name", PARTS)
def test_no_name_becomes_html(tmp_path: Path, name: str) -> None:
    seen = Reader(PARTS[name](tmp_path))
    assert "script" not in seen.tags
    assert seen.tags.count("b") == (name == "stamp")  # a stamp's own
    assert ODD in "".join(seen.texts) or ODD in seen.attributes


def test_what_was_made_of_templates_is_not_escaped_again() -> None:
    """The negative control: an element is told from a text that looks like one."""
    inner = html.paragraph("a & b")
    assert Reader(html.section("t", inner)).tags == ["section", "h2", "p"]
    assert html.section("t", "<p>") == "<section>\n<h2>t</h2>\n&lt;p&gt;\n</section>"


def test_every_part_is_in_the_test_of_names() -> None:
    made = {name for name, value in vars(html).items() if callable(value) and value.__module__ == html.__name__}
    assert {name for name in made if not name.startswith("_")} == set(PARTS)


def test_a_page_asks_nothing_of_the_network() -> None:
    page = html.page("t", [html.table(["a"], [("b", ["1"])])])
    assert not {"script", "link", "iframe"} & set(Reader(page).tags) and "http" not in page and "url(" not in page
