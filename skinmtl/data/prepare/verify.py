"""A data set on the disk, looked at in full: every image decoded, every file summed, counts beside the published."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pandas as pd

from skinmtl.data import sources
from skinmtl.data.images.reading import read_image, read_mask
from skinmtl.data.prepare import manifest
from skinmtl.data.prepare.folders import walk
from skinmtl.data.prepare.names import is_picture
from skinmtl.errors import Faults, InputError, SkinmtlError
from skinmtl.files import digest
from skinmtl.terminal import tracked

LESIONS = 7470
IMAGES = {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}
IDS = {f"ISIC_{number:07d}" for number in range(24306, 34321)}  # as published, without a gap

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass
class Report:
    """What a look at a data set found.

    `notes` are sentences for the user. The others go by path below the folder: `sums` are sizes and sha256, `masks`
    the masks of images, `faults` what is wrong, "" for what concerns no single file. `leaky` where there are no
    lesion ids, so that no honest split can be made.
    """

    leaky: bool = False
    notes: list[str] = field(default_factory=list)
    sums: dict[str, manifest.Sum] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[SkinmtlError]] = field(default_factory=lambda: defaultdict(list))

    def all_faults(self) -> list[SkinmtlError]:
        """Every fault, by path."""
        return [fault for _, several in sorted(self.faults.items()) for fault in several]


def check(root: Path) -> Report:
    """Look at a data set again, against its manifest where it has one.

    Args:
        root: its folder.

    Returns:
        What was found; its faults are the caller's to raise.

    Raises:
        InputError: nothing at `root`, or the manifest cannot be read.
        Faults: folders or files that cannot be read.
    """
    if not root.is_dir():
        raise InputError(str(root), "no such folder", "give the folder that `skinmtl prepare` wrote")
    report = look(root)
    if (root / manifest.NAME).is_file():
        changed = dict(manifest.faults(root, manifest.read(root), report.sums))
        for path in changed:
            report.faults.pop(report.masks.get(path, path), None)  # it may not fit a image that changed
        report.faults |= {path: [fault] for path, fault in changed.items()}
        report.notes.append(f"{len(report.sums):,} files compared with {manifest.NAME}")
    else:
        report.notes.append(f"no {manifest.NAME} here: a changed pixel would not be seen")
    return report


def look(root: Path) -> Report:
    """Decode every image with its mask, sum every file, and compare counts with the published ones.

    Args:
        root: the data set's folder.

    Returns:
        What was found, faults too.

    Raises:
        Faults: folders or files that cannot be read.
    """
    report = Report()
    try:
        table = sources.read(root, allow_leak=True)
    except SkinmtlError as error:
        table = pd.DataFrame(columns=list(sources.COLUMNS))
        report.faults[""] += error.faults if isinstance(error, Faults) else [error]
    files = [path for path in walk(root) if path != root / manifest.NAME]
    pairs = [
        (Path(image), Path(mask) if isinstance(mask, str) else None)
        for image, mask in zip(table["image"].tolist(), table["mask"].tolist(), strict=True)
    ]
    report.masks = {os.path.relpath(image, root): os.path.relpath(mask, root) for image, mask in pairs if mask}
    paired = {path for pair in pairs for path in pair}
    others = [path for path in files if path not in paired]
    pairs += [(path, None) for path in others if is_picture(path.name) and table.empty]

    for path, found in zip(files, _over(files, _sum, "reading"), strict=True):
        report.sums[path.relative_to(root).as_posix()] = found
    for fault in _over(pairs, _decode, "decoding"):
        if fault:
            report.faults[os.path.relpath(fault.where, root)].append(fault)
    if not table.empty:
        report.leaky = sources.is_leaky(table)
        strays = sum(is_picture(path.name) for path in others)
        report.notes += [*counted(table), *_same(table, root, report.sums)]
        report.notes += [f"{strays:,} images belong to no row of the table"] if strays else []
    return report


def _over(items: Sequence[Item], act: Callable[[Item], Found], what: str) -> Iterator[Found]:
    """What `act` gives for each, by as many threads as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            yield from tracked(pool.map(act, items), what, len(items))
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C would otherwise wait for all of them


def _sum(path: Path) -> manifest.Sum:
    with path.open("rb") as file:
        return manifest.Sum(os.fstat(file.fileno()).st_size, digest(file))


def _decode(pair: tuple[Path, Path | None]) -> SkinmtlError | None:
    image, mask = pair
    try:
        height, width = read_image(image, has_mask=mask is not None).shape[:2]
        if mask is not None:
            read_mask(mask, size=(height, width))
    except SkinmtlError as fault:
        return fault
    return None


def counted(table: pd.DataFrame) -> list[str]:
    """Count images, masks, lesions and diagnoses of a case table, beside what was published of HAM10000."""
    images, masks, lesions = len(table), int(table["mask"].notna().sum()), int(table["lesion_id"].nunique())
    counts = {str(dx): int(number) for dx, number in table["dx"].value_counts().items()}
    ids = set(table["image_id"])
    ours = not ids.isdisjoint(IDS)
    notes = _extent(ids)

    notes.append(f"{masks:,} of them have a mask" + (f", {images - masks:,} have none" * (masks < images)))
    if sources.is_leaky(table):
        notes.append("no lesion ids, so no honest split can be made: join them with --lesions <HAM10000_metadata.csv>")
    else:
        notes.append(_of("lesions", lesions, LESIONS) if ours else f"{lesions:,} lesions")
    if not ours:
        return notes + [f"{number:,} {dx}" for dx, number in counts.items()]
    notes += [_of(dx, counts.get(dx, 0), published) for dx, published in IMAGES.items()]
    if ids == IDS and any(counts.get(dx, 0) != published for dx, published in IMAGES.items()):
        notes.append("the images are the published ones and the diagnoses are not: rows were relabelled")
    return notes


def _extent(ids: set[str]) -> list[str]:
    """Which of the published images these are, by their ids."""
    foreign = sorted(ids - IDS)
    if ids.isdisjoint(IDS):
        return [f"{len(ids):,} images, none of them HAM10000's by its id, such as {foreign[0]}"]
    what = "all of HAM10000" if ids >= IDS else "a part of HAM10000"
    notes = [f"{len(ids & IDS):,} of {len(IDS):,} images: {what}"]
    if foreign:
        notes.append(f"{len(foreign):,} more, not HAM10000's by their ids, such as {foreign[0]}")
    return notes


def _of(what: str, found: int, published: int) -> str:
    more = f", {found - published:,} more than published: of other images, or relabelled"
    return f"{found:,} of {published:,} {what}" + more * (found > published)


def _same(table: pd.DataFrame, root: Path, sums: dict[str, manifest.Sum]) -> list[str]:
    """A note for each group of images that are the same bytes."""
    digest = table["image"].map(lambda path: sums[os.path.relpath(path, root)].sha256)
    notes = []
    for _, rows in table[digest.duplicated(keep=False)].groupby(digest):
        lesions = rows["lesion_id"].nunique()
        whose = "one lesion" if lesions == 1 else f"{lesions} lesions"
        notes.append(f"{' = '.join(rows['image_id'])}: the same bytes, of {whose}")
    return notes
