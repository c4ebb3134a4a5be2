"""Further photographs that only train, beside those at data.root: another data set, with masks or diagnoses alone."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from annotated_types import Interval

from skinmtl.data import sources
from skinmtl.errors import ConfigError, InputError

logger = logging.getLogger(__name__)


class Also:
    """A second source: `share` is the part of every batch that it fills.

    It is never validated or tested on, so it may lack lesion ids; photographs, files and known lesions that it has in
    common with the first source are left out. Its diagnoses are those of the first source or missing. `masks` is a
    folder of masks instead of its own.
    """

    def __init__(
        self,
        root: str,
        share: Annotated[float, Interval(gt=0, lt=1)],
        layout: Literal["auto"] | sources.Layout = "auto",
        masks: str | None = None,
    ) -> None:
        self.root, self.share, self.layout = Path(root), share, layout
        self.masks = Path(masks) if masks else None

    def read(self, first: pd.DataFrame) -> pd.DataFrame:
        """Its case table without photographs, files or lesions of the `first` source, with the diagnoses of that one.

        Raises:
            InputError: diagnoses that the first source does not know, or nothing left.
        """
        table = sources.read(self.root, self.layout, allow_leak=True, masks=self.masks)
        known = list(first["dx"].cat.categories)
        if strange := sorted(set(table["dx"].dropna()) - set(known)):
            what = f"diagnoses that the photographs at data.root do not have: {', '.join(strange)}"
            raise InputError(str(self.root), what, f"use {', '.join(known)}, or leave them blank")

        lesions = table["lesion_id"].notna() & table["lesion_id"].isin(first["lesion_id"].dropna())
        shared = table["image_id"].isin(first["image_id"]) | lesions | _same_bytes(table, first)
        if shared.all():
            raise InputError(str(self.root), "every photograph is one of data.root, too", "leave this source out")
        if shared.any():
            what = (
                f"{int(shared.sum()):,} of {len(table):,} photographs left out, for data.root has them or their lesion"
            )
            logger.info("%s: %s", self.root, what)
        if sources.is_leaky(table):
            logger.info(
                "%s: no lesion ids, so lesions in common with data.root would go unseen (skinmtl audit)", self.root
            )
        table = table[~shared].reset_index(drop=True)
        return table.assign(dx=pd.Categorical(table["dx"].astype(object), categories=known))


def places(also: Mapping[str, Also], batch_size: int) -> list[int]:
    """How many photographs of a batch are of the first source, and of each further one, at least one of each."""
    further = [round(source.share * batch_size) for source in also.values()]
    for name, count in zip(also, further, strict=True):
        if count == 0:
            what = f"{also[name].share:g} of a batch of {batch_size} is no photograph"
            raise ConfigError(f"data.also.{name}.share", what, "use larger batches, or a larger share")
    if sum(further) >= batch_size:
        what = f"together they fill all {batch_size} places of a batch"
        raise ConfigError("data.also", what, "leave a share for the photographs at data.root")
    return [batch_size - sum(further), *further]


def _same_bytes(table: pd.DataFrame, first: pd.DataFrame) -> pd.Series:
    """Which photographs are files of the first source, too; only files of equal size are read."""
    sizes = {os.path.getsize(path) for path in table["image"]}
    known = {_digest(path) for path in first["image"] if os.path.getsize(path) in sizes}
    return table["image"].map(lambda path: _digest(path) in known)


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
