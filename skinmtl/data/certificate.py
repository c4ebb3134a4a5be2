"""The certificate of a split, which a run keeps: sizes, classes, what was merged, that no lesion is in two splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.data import lesion_groups, sources, splits
from skinmtl.data.lesion_groups import DuplicatePair

SEEDS = 20  # splits by image that are made to tell what a grouped one avoids


def certificate(
    split: pd.DataFrame,
    table: pd.DataFrame,
    digest: str,
    pairs: Sequence[DuplicatePair] = (),
    origin: str = "none",
    auxiliary: pd.DataFrame | None = None,
    auxiliary_facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Describe a split that `splits.check` has passed.

    Sizes, classes and what was merged are those of the split. Lesions in more than one split are counted with the
    auxiliary data in training; null where an auxiliary data set has no lesion ids, so that nobody knows.

    Args:
        split: as `splits.load` returns it.
        table: the case table.
        digest: the sha256 of the split file.
        pairs: known duplicates, of auxiliary data, too; lesions of the split were merged by them.
        origin: where they come from: known, none or the name of a file.
        auxiliary: the case tables of all auxiliary data sets in one, which trains in every fold.
        auxiliary_facts: facts of each auxiliary data set by its name.

    Returns:
        A dict of numbers, text, lists and dicts, ready for JSON.
    """
    trains = table[:0] if auxiliary is None else auxiliary
    names = lesion_groups.groups(pd.concat([table, trains], ignore_index=True), pairs).to_numpy()
    extra = pd.DataFrame({"lesion": trains["lesion_id"].fillna(trains["image_id"]), "split": "train"})
    extra = extra.assign(group=names[len(table) :], merged=names[len(table) :])
    unknown = any(facts["leaky"] for facts in (auxiliary_facts or {}).values())
    pairs = [pair for pair in pairs if set(table["image_id"]).issuperset(pair)]
    rows = split.set_index("image_id").reindex(table["image_id"])
    images = pd.DataFrame(
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
        "images": len(images),
        "lesions": int(images["lesion"].nunique()),
        "groups": int(images["group"].nunique()),
        "lesion_ids": not sources.is_leaky(table),
        "duplicates": {"from": origin, "pairs": [list(pair) for pair in pairs], "merged": merged_groups(table, pairs)},
        "also": {name: dict(facts) for name, facts in (auxiliary_facts or {}).items()},
        "folds": {name: _fold(images.assign(split=rows[name].to_numpy()), extra, unknown) for name in folds},
    }


def merged_groups(table: pd.DataFrame, pairs: Sequence[DuplicatePair]) -> list[dict[str, Any]]:
    """Describe the groups of more than one lesion.

    Args:
        table: a case table.
        pairs: known duplicates.

    Returns:
        For each its name, lesions, images and diagnoses; several diagnoses are listed, not refused.
    """
    names = lesion_groups.groups(table, pairs)
    found = []
    for group, rows in table.groupby(names.to_numpy(), sort=True):
        lesions = sorted(rows["lesion_id"].fillna(rows["image_id"]).unique())
        if len(lesions) > 1:
            dx = sorted(rows["dx"].dropna().astype(str).unique())
            found.append({"group": group, "lesions": lesions, "images": sorted(rows["image_id"]), "dx": dx})
    return found


def count_siblings(groups: Sequence[str] | pd.Series, train: int, test: int, seeds: int = SEEDS) -> NDArray[np.int64]:
    """Count the test images that would have one of their group in training if images were split singly.

    Args:
        groups: (N,) the group of each image.
        train: how many images train.
        test: how many test.
        seeds: how many random splits are tried.

    Returns:
        (seeds,) int64, a count for each.
    """
    codes, names = pd.factorize(np.asarray(groups, dtype=object))
    found = np.empty(seeds, dtype=np.int64)
    for seed in range(seeds):
        shuffled = codes[np.random.RandomState(seed).permutation(len(codes))]
        trained = np.zeros(len(names), dtype=bool)
        trained[shuffled[:train]] = True
        found[seed] = trained[shuffled[train : train + test]].sum()
    return found


def _fold(rows: pd.DataFrame, extra: pd.DataFrame, unknown: bool) -> dict[str, Any]:
    """Describe one fold.

    Args:
        rows: its images, with dx, lesion, group, merged and split.
        extra: the images of auxiliary data, with lesion, group, merged and split.
        unknown: whether nobody knows which lesions these show.
    """
    sizes = {split: _describe(rows[rows["split"] == split]) for split in splits.SPLITS}
    singly = count_siblings(rows["merged"], sizes["train"]["images"], sizes["test"]["images"])
    both = pd.concat([rows, extra], ignore_index=True)
    spread = {
        name: len(splits.groups_across_splits(both["split"], both[name])) for name in ("lesion", "group", "merged")
    }
    return sizes | {
        "lesions_on_two_sides": None if unknown else spread["lesion"],
        "groups_on_two_sides": None if unknown else max(spread["group"], spread["merged"]),
        "test_images_with_a_sibling_in_training": {
            "here": None if unknown else _with_sibling(both),
            "split_by_image": {"mean": float(singly.mean()), "sd": float(singly.std(ddof=1)), "seeds": SEEDS},
        },
    }


def _describe(rows: pd.DataFrame) -> dict[str, Any]:
    counts = rows["dx"].value_counts().sort_index()
    classes = {str(dx): {"images": int(n), "share": round(float(n / counts.sum()), 4)} for dx, n in counts.items()}
    sizes = {"images": len(rows), "lesions": int(rows["lesion"].nunique()), "groups": int(rows["group"].nunique())}
    return sizes | {"classes": classes}


def _with_sibling(rows: pd.DataFrame) -> int:
    trained = set(rows.loc[rows["split"] == "train", "merged"])
    return int(rows.loc[rows["split"] == "test", "merged"].isin(trained).sum())
