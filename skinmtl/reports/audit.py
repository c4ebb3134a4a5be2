"""The page of an audit and the tables beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from skinmtl.audit import near_duplicates
from skinmtl.audit.leaks import Findings, lines
from skinmtl.data.images.reading import fit_image, read_image
from skinmtl.figures.near_duplicates import features_in_place
from skinmtl.figures.style import save
from skinmtl.files import write_bytes, write_json, write_text
from skinmtl.reports import html

MOST_SHOWN = 60  # pairs on the contact sheet


def write_audit(findings: Findings, paths: Mapping[str, str], out: Path, title: str) -> Path:
    """Write audit.json, duplicates.csv, groups.csv, distances.svg and the page audit.html.

    Args:
        findings: what the audit found.
        paths: of images, by their ids.
        out: the folder.
        title: of the page.

    Returns:
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "audit.json", findings.facts)
    write_text(out / "duplicates.csv", findings.pairs.to_csv(index=False))
    write_text(out / "groups.csv", findings.groups.to_csv(index=False))
    if findings.overlap is not None:
        write_text(out / "overlap.csv", findings.overlap.to_csv(index=False))
    parts = [html.heading(title), html.bullets(lines(findings)), *_drawn(findings, paths, out / "figures")]
    write_text(out / "audit.html", html.page(title, parts))
    return out / "audit.html"


def _drawn(findings: Findings, paths: Mapping[str, str], folder: Path) -> Iterable[str]:
    """What close looks saw, and the pairs themselves: those under two ids first, the most certain first."""
    folder.mkdir(exist_ok=True)
    looked = findings.compared[findings.compared["kind"].isin(["", "retake"])]
    within = looked["same_lesion"].to_numpy()
    counts = looked["features"].to_numpy()
    drawn = features_in_place(counts[within], counts[~within], near_duplicates.RETAKE)
    file = save(drawn, folder / "features_in_place.svg")
    caption = "Pairs that were compared closely, by how many local features lie in one place on both images."
    yield html.section("How sure", html.picture(file, caption))
    order = findings.pairs.sort_values(["same_lesion", "kind", "features"], ascending=[True, True, False])
    for name, pairs in (
        ("Under two lesion ids", order[~order["same_lesion"]]),
        ("Within a lesion", order[order["same_lesion"]]),
    ):
        if len(pairs):
            file = folder / f"{name.split()[0].lower()}.jpg"
            _contact_sheet(pairs.head(MOST_SHOWN), paths, file)
            shown = f"The first {min(MOST_SHOWN, len(pairs))} of {len(pairs):,} pairs."
            yield html.section(name, html.picture(file, shown))


def _contact_sheet(pairs: pd.DataFrame, paths: Mapping[str, str], file: Path, across: int = 3) -> None:
    """Write the images of pairs side by side, three pairs a row, each under its ids."""
    tiles = []
    for row in pairs.itertuples():
        both = [fit_image(read_image(Path(paths[str(name)])), (96, 128)) for name in (row.first, row.second)]
        words = np.full((14, 256, 3), 255, np.uint8)
        text = f"{row.first} {row.second} {row.kind}"
        cv2.putText(words, text, (2, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(np.pad(np.vstack([words, np.hstack(both)]), ((0, 6), (0, 6), (0, 0)), constant_values=255))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % across)
    sheet = np.vstack([np.hstack(tiles[start : start + across]) for start in range(0, len(tiles), across)])
    done, content = cv2.imencode(".jpg", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert done
    write_bytes(file, content.tobytes())
