"""Auxiliary data: a further data set, with masks or diagnoses alone, whose images only train beside data.root's."""

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
from skinmtl.runs.cells import canonical_spelling

logger = logging.getLogger(__name__)


class AuxiliaryData:
    """An auxiliary data set, which fills a fraction of every training batch and is never validated or tested on.

    Whatever it has in common with the data at data.root is left out: images, files, lesions, known duplicates, with all
    that it has of the same lesion. Its diagnoses are those of data.root or missing.

    Args:
        root: its folder or table.
        share: the fraction of every batch that it fills.
        layout: which layout lies there; auto looks.
        masks: a folder of masks from elsewhere, instead of its own.
        lesions: a table of `image_id` and `lesion_id`, where it has no lesion ids of its own.
        disjoint: where nobody knows its lesions, why none of them is at data.root: the log, run.json and the split's
            certificate repeat it. Without this and without lesion ids it leaks.
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
        """Read its case table without what it has in common with the data at data.root.

        Args:
            first: the case table of data.root.
            known: which duplicates are known, as `lesion_groups.pairs` takes it.
            allow_leak: whether it may leak.
            keep: the folder of kept file hashes, as `file_hashes.with_digests` takes it.
            names: as for `sources.read`.

        Returns:
            A case table, its `dx` categorical over the diagnoses of data.root; `lesion_id` is missing where nobody gave
            lesion ids.

        Raises:
            InputError: diagnoses that data.root does not have, a leak, a file that cannot be read, or nothing left.
        """
        table = sources.read(self.root, self.layout, True, self.masks, self.lesions, names)
        first, table = (with_digests(cases, keep) for cases in (first, table))
        classes = list(first["dx"].cat.categories)
        if strange := sorted(set(table["dx"].dropna()) - set(classes)):
            what = f"diagnoses that the images at data.root do not have: {', '.join(strange)}"
            raise InputError(str(self.root), what, f"use {', '.join(classes)}, or leave them blank")
        if sources.is_leaky(table):
            table["lesion_id"] = pd.Series(pd.NA, index=table.index, dtype="str")
            self._say_unknown(allow_leak)

        shared = _in_common(table, first, known)
        if shared.all():
            raise InputError(str(self.root), "every image is one of data.root, too", "leave this data set out")
        if shared.any():
            what = f"{int(shared.sum()):,} of {len(table):,} images left out, for data.root has them or their lesion"
            logger.info("%s: %s", self.root, what)
        table = table[~shared].reset_index(drop=True)
        return table.assign(dx=pd.Categorical(table["dx"].astype(object), categories=classes))

    def _say_unknown(self, allow_leak: bool) -> None:
        """Log why a data set without lesion ids may train; refuse it where nobody says why."""
        what = "no lesion ids, so lesions of validation and test may train"
        if not self.disjoint and not allow_leak:
            fix = "join them by this data set's lesions=<table>, or say in its disjoint=<why> that it shares none "
            fix += "(skinmtl audit --with), or set data.allow_leak=true and have scores marked LEAKY"
            raise InputError(str(self.root), what, fix)
        if self.disjoint:
            what = f"no lesion ids; taken to share no lesion with data.root: {self.disjoint}"
        logger.info("%s: %s", self.root, what)

    def facts(self, table: pd.DataFrame) -> dict[str, Any]:
        """Describe the data set for run.json and the certificate.

        Args:
            table: its case table, as `read` returns it.
        """
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


def images_per_source(auxiliary: Mapping[str, AuxiliaryData], batch_size: int) -> list[int]:
    """Divide a step's batch among data.root and the auxiliary data sets, at least one image each.

    Args:
        auxiliary: the auxiliary data sets by name.
        batch_size: images of a step on all processes together.

    Returns:
        How many images are of data.root, and how many of each auxiliary data set, in order.

    Raises:
        ConfigError: one of them would have no image.
    """
    counts = [round(source.share * batch_size) for source in auxiliary.values()]
    for name, count in zip(auxiliary, counts, strict=True):
        if count == 0:
            what = f"{auxiliary[name].share:g} of a batch of {batch_size} is no image"
            raise ConfigError(f"data.auxiliary.{name}.share", what, "use larger batches, or a larger share")
    if sum(counts) >= batch_size:
        what = f"together they fill all {batch_size} places of a batch"
        raise ConfigError("data.auxiliary", what, "leave a share for the images at data.root")
    return [batch_size - sum(counts), *counts]


def _in_common(table: pd.DataFrame, first: pd.DataFrame, known: str) -> pd.Series:
    """Tell which images show what data.root shows, or a lesion of an image that does.

    Args:
        table: the case table of the auxiliary data set, of n images.
        first: the case table of data.root.
        known: which duplicates are known.

    Returns:
        Booleans (n,).
    """
    pairs = lesion_groups.pairs(known, pd.concat([first, table], ignore_index=True))
    mine, theirs = set(table["image_id"]), set(first["image_id"])
    partners = {name for pair in pairs if not theirs.isdisjoint(pair) for name in pair}
    # An id in other letters may be the same, and what only trains may be left out on a doubt.
    lesions = (
        table["lesion_id"]
        .dropna()
        .map(canonical_spelling)
        .isin(set(first["lesion_id"].dropna().map(canonical_spelling)))
    )
    lesions = lesions.reindex(table.index, fill_value=False)
    shared = table["image_id"].isin(theirs | partners) | lesions
    shared |= table["image_sha256"].isin(first["image_sha256"].dropna())
    groups = lesion_groups.groups(table, [pair for pair in pairs if mine.issuperset(pair)])
    return groups.isin(groups[shared])
