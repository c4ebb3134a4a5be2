"""What a split is, as facts that a run keeps: sizes, shares, what was merged, that nothing stands on two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.data import lesion_groups, sources, splits
from skinmtl.data.lesion_groups import Pair

SEEDS = 20  # image-level splits that are drawn to tell what a grouped one avoids


def certificate(
    split: pd.DataFrame,
    table: pd.DataFrame,
    digest: str,
    pairs: Sequence[Pair] = (),
    origin: str = "none",
    further: pd.DataFrame | None = None,
    also: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The certificate of a split that `splits.check` has passed, ready for JSON.

    Sizes, classes and what was merged are those of the split. What stands on two sides is counted with the further
    sources in training, and null where one of them leaks: nobody knows then.

    Args:
        split: as `splits.load` gives it.
        table: the case table.
        digest: the sha256 of the split file.
        pairs: known duplicates, of the further sources, too; lesions of the split were merged by them.
        origin: where they come from: known, none or the name of a file.
        further: the case tables of the further sources in one, which trains in every fold.
        also: facts of each further source by name, as `Also.facts` gives them.
    """
    trains = table[:0] if further is None else further
    names = lesion_groups.groups(pd.concat([table, trains], ignore_index=True), pairs).to_numpy()
    extra = pd.DataFrame({"lesion": trains["lesion_id"].fillna(trains["image_id"]), "stage": "train"})
    extra = extra.assign(group=names[len(table) :], merged=names[len(table) :])
    unknown = any(facts["leaky"] for facts in (also or {}).values())
    pairs = [pair for pair in pairs if set(table["image_id"]).issuperset(pair)]
    rows = split.set_index("image_id").reindex(table["image_id"])
    sides = pd.DataFrame(
        {
            "dx": table["dx"].astype(str).where(table["dx"].notna()).to_numpy(),
            "lesion": table["lesion_id"].fillna(table["image_id"]).to_numpy(),
            "group": rows["group"].to_numpy(),
            "merged": names[: len(table)],
        }
    )
    folds = [name for name in split.columns if name.startswith("fold_")]
    return {
        "split_sha256": digest,
        "images": len(sides),
        "lesions": int(sides["lesion"].nunique()),
        "groups": int(sides["group"].nunique()),
        "lesion_ids": not sources.is_leaky(table),
        "duplicates": {"from": origin, "pairs": [list(pair) for pair in pairs], "merged": merged(table, pairs)},
        "also": {name: dict(facts) for name, facts in (also or {}).items()},
        "folds": {name: _fold(sides.assign(stage=rows[name].to_numpy()), extra, unknown) for name in folds},
    }


def merged(table: pd.DataFrame, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The groups of more than one lesion: their lesions, photographs, diagnoses (several are told, not refused)."""
    names = lesion_groups.groups(table, pairs)
    found = []
    for group, rows in table.groupby(names.to_numpy(), sort=True):
        lesions = sorted(rows["lesion_id"].fillna(rows["image_id"]).unique())
        if len(lesions) > 1:
            dx = sorted(rows["dx"].dropna().astype(str).unique())
            found.append({"group": group, "lesions": lesions, "images": sorted(rows["image_id"]), "dx": dx})
    return found


def siblings(groups: Sequence[str] | pd.Series, train: int, test: int, seeds: int = SEEDS) -> NDArray[np.int64]:
    """How many test photographs would have one of their group in training if photographs were dealt singly, (seeds,).

    Args:
        groups: the group of each photograph.
        train: how many photographs train.
        test: how many test.
        seeds: how often they are dealt.
    """
    codes, names = pd.factorize(np.asarray(groups, dtype=object))
    found = np.empty(seeds, dtype=np.int64)
    for seed in range(seeds):
        dealt = codes[np.random.RandomState(seed).permutation(len(codes))]
        trained = np.zeros(len(names), dtype=bool)
        trained[dealt[:train]] = True
        found[seed] = trained[dealt[train : train + test]].sum()
    return found


def _fold(rows: pd.DataFrame, extra: pd.DataFrame, unknown: bool) -> dict[str, Any]:
    """One fold, from rows of its photographs, dx, lesion, group, merged, stage, and of the further sources, `extra`."""
    parts = {stage: _part(rows[rows["stage"] == stage]) for stage in splits.STAGES}
    dealt = siblings(rows["merged"], parts["train"]["images"], parts["test"]["images"])
    both = pd.concat([rows, extra], ignore_index=True)
    torn = {name: len(splits.on_two_sides(both["stage"], both[name])) for name in ("lesion", "group", "merged")}
    return parts | {
        "lesions_on_two_sides": None if unknown else torn["lesion"],
        "groups_on_two_sides": None if unknown else max(torn["group"], torn["merged"]),
        "test_images_with_a_sibling_in_training": {
            "here": None if unknown else _with_sibling(both),
            "split_by_image": {"mean": float(dealt.mean()), "sd": float(dealt.std(ddof=1)), "seeds": SEEDS},
        },
    }


def _part(rows: pd.DataFrame) -> dict[str, Any]:
    counts = rows["dx"].value_counts().sort_index()
    classes = {str(dx): {"images": int(n), "share": round(float(n / counts.sum()), 4)} for dx, n in counts.items()}
    sizes = {"images": len(rows), "lesions": int(rows["lesion"].nunique()), "groups": int(rows["group"].nunique())}
    return sizes | {"classes": classes}


def _with_sibling(rows: pd.DataFrame) -> int:
    trained = set(rows.loc[rows["stage"] == "train", "merged"])
    return int(rows.loc[rows["stage"] == "test", "merged"].isin(trained).sum())
