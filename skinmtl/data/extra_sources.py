"""Further photographs that only train, beside those at data.root: another data set, with masks or diagnoses alone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from annotated_types import Interval

from skinmtl.data import lesion_groups, sources
from skinmtl.data.file_hashes import with_digests
from skinmtl.errors import ConfigError, InputError
from skinmtl.runs.cells import spelling

logger = logging.getLogger(__name__)


class Also:
    """A second source: `share` is the part of every batch that it fills.

    It is never validated or tested on. Whatever it has in common with the first source is left out: photographs, files,
    lesions, known duplicates, with all that it has of the same lesion. Its diagnoses are those of the first source or
    missing. `masks` is a folder of masks instead of its own, `lesions` a table of `image_id` and `lesion_id` where it
    has no lesion ids. With neither it leaks, unless `disjoint` says why none of its lesions is in the first source:
    words that the log, run.json and the split's certificate repeat.

    Args:
        masks: a folder of masks from elsewhere, instead of its own.
    """

    def __init__(
        self,
        root: str,
        share: Annotated[float, Interval(gt=0, lt=1)],
        layout: Literal["auto"] | sources.Layout = "auto",
        masks: str | None = None,
        lesions: str | None = None,
        disjoint: str | None = None,
    ) -> None:
        self.root, self.share, self.layout, self.disjoint = Path(root).expanduser(), share, layout, disjoint
        self.masks, self.lesions = (Path(path).expanduser() if path else None for path in (masks, lesions))

    def read(
        self,
        first: pd.DataFrame,
        known: str = "none",
        allow_leak: bool = False,
        keep: Path | None = None,
        names: Collection[str] = (),
    ) -> pd.DataFrame:
        """Its case table without what it has in common with the `first` source, with the diagnoses of that one.

        `lesion_id` is missing where nobody gave lesion ids.

        Args:
            first: the case table of the first source.
            known: which duplicates are known, as `duplicates.pairs` takes it.
            allow_leak: whether it may leak.
            keep: where it is kept what stands in files, as `contents.with_digests` has it.
            names: as for `sources.read`.

        Raises:
            InputError: diagnoses that the first source does not know, a leak, a file that cannot be read, or nothing
                left.
        """
        table = sources.read(self.root, self.layout, True, self.masks, self.lesions, names)
        first, table = (with_digests(cases, keep) for cases in (first, table))
        classes = list(first["dx"].cat.categories)
        if strange := sorted(set(table["dx"].dropna()) - set(classes)):
            what = f"diagnoses that the photographs at data.root do not have: {', '.join(strange)}"
            raise InputError(str(self.root), what, f"use {', '.join(classes)}, or leave them blank")
        if sources.is_leaky(table):
            table["lesion_id"] = pd.Series(pd.NA, index=table.index, dtype="str")
            self._say_unknown(allow_leak)

        shared = _in_common(table, first, known)
        if shared.all():
            raise InputError(str(self.root), "every photograph is one of data.root, too", "leave this source out")
        if shared.any():
            what = (
                f"{int(shared.sum()):,} of {len(table):,} photographs left out, for data.root has them or their lesion"
            )
            logger.info("%s: %s", self.root, what)
        table = table[~shared].reset_index(drop=True)
        return table.assign(dx=pd.Categorical(table["dx"].astype(object), categories=classes))

    def _say_unknown(self, allow_leak: bool) -> None:
        """Say on what ground a source without lesion ids trains; refuse where there is none."""
        what = "no lesion ids, so lesions of validation and test may train"
        if not self.disjoint and not allow_leak:
            fix = "join them by this source's lesions=<table>, or say in its disjoint=<why> that it shares none "
            fix += "(skinmtl audit --with), or set data.allow_leak=true and have scores stamped LEAKY"
            raise InputError(str(self.root), what, fix)
        if self.disjoint:
            what = f"no lesion ids; taken to share no lesion with data.root: {self.disjoint}"
        logger.info("%s: %s", self.root, what)

    def facts(self, table: pd.DataFrame) -> dict[str, Any]:
        """What run.json and the certificate say of the source, from its case table."""
        known = bool(table["lesion_id"].notna().all())
        return {
            "images": len(table),
            "masks": int(table["mask"].notna().sum()),
            "diagnoses": int(table["dx"].notna().sum()),
            "share": self.share,
            "lesion_ids": known,
            "disjoint": self.disjoint,
            "leaky": not known and not self.disjoint,
        }


def places(also: Mapping[str, Also], batch_size: int) -> list[int]:
    """How many photographs of a step's batch are of the first source and of each further one, at least one of each."""
    further = [round(source.share * batch_size) for source in also.values()]
    for name, count in zip(also, further, strict=True):
        if count == 0:
            what = f"{also[name].share:g} of a batch of {batch_size} is no photograph"
            raise ConfigError(f"data.also.{name}.share", what, "use larger batches, or a larger share")
    if sum(further) >= batch_size:
        what = f"together they fill all {batch_size} places of a batch"
        raise ConfigError("data.also", what, "leave a share for the photographs at data.root")
    return [batch_size - sum(further), *further]


def _in_common(table: pd.DataFrame, first: pd.DataFrame, known: str) -> pd.Series:
    """Which photographs show what the first source shows, or a lesion of one that does, (n,)."""
    pairs = lesion_groups.pairs(known, pd.concat([first, table], ignore_index=True))
    mine, theirs = set(table["image_id"]), set(first["image_id"])
    partners = {name for pair in pairs if not theirs.isdisjoint(pair) for name in pair}
    # An id in other letters may be the same, and what only trains may be left out on a doubt.
    lesions = table["lesion_id"].dropna().map(spelling).isin(set(first["lesion_id"].dropna().map(spelling)))
    lesions = lesions.reindex(table.index, fill_value=False)
    shared = table["image_id"].isin(theirs | partners) | lesions
    shared |= table["image_sha256"].isin(first["image_sha256"].dropna())
    groups = lesion_groups.groups(table, [pair for pair in pairs if mine.issuperset(pair)])
    return groups.isin(groups[shared])
