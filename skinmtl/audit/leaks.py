"""Leaks in a data set: one lesion under two ids, a lesion in two splits, a second data set with the same lesions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinmtl.audit import near_duplicates
from skinmtl.data import certificate, lesion_groups, sources, splits
from skinmtl.errors import Faults, InputError
from skinmtl.files import digest
from skinmtl.terminal import tracked

YEARS = 5  # HAM10000 rounds ages to them
KINDS = {"bytes": "identical files", "copy": "changed copies", "retake": "photographed again"}


@dataclass
class Findings:
    """What an audit found: facts ready for JSON, tables, and what is wrong with the given split."""

    facts: dict[str, Any]
    compared: pd.DataFrame  # every pair that was compared: near_duplicates.COLUMNS, same_lesion
    pairs: pd.DataFrame  # those of them that show one lesion, with lesion and dx of either
    groups: pd.DataFrame  # image_id, lesion_id, group
    overlap: pd.DataFrame | None = None  # first here, second in the other data set, kind
    faults: list[InputError] = field(default_factory=list)


def audit(
    root: Path,
    other: Path | None = None,
    split: Path | None = None,
    layout: Literal["auto"] | sources.Layout = "auto",
    masks: Path | None = None,
    lesions: Path | None = None,
) -> tuple[Findings, dict[str, str]]:
    """Compare the images of a data set with each other, and with those of another one.

    Args:
        root: a data set in any layout, with lesion ids or without; a folder, or a table of the user's own.
        other: a second data set, whose overlap with the first is looked for.
        split: a split file of the first, to be checked.
        layout: which layout lies at `root`; auto looks.
        masks: a folder of masks from elsewhere, as `data.masks`.
        lesions: a table of lesion ids, as `data.lesions`.

    Returns:
        What was found, and the path of each image by its id.

    Raises:
        InputError: nothing usable at one of them.
        Faults: images that cannot be read.
    """
    table = sources.read(root, layout, allow_leak=True, masks=masks, lesions=lesions)
    second = None if other is None else sources.read(other, allow_leak=True)
    given = None if split is None else splits.load(split)
    seen = _fingerprints(table, f"reading {root.name}")
    ids = table["image_id"].tolist()
    compared = _described(near_duplicates.compare(ids, seen, track=tracked), table)
    found = compared[compared["kind"] != ""].reset_index(drop=True)
    merging = [(str(a), str(b)) for a, b in zip(found["first"], found["second"], strict=True)]
    groups = lesion_groups.groups(table, merging)
    facts = _facts(table, compared, found, groups)
    findings = Findings(facts, compared, found, table[["image_id", "lesion_id"]].assign(group=groups))
    paths = dict(zip(ids, table["image"], strict=True))

    if other is not None and second is not None:
        theirs = _fingerprints(second, f"reading {other.name}")
        findings.overlap = _overlap(ids, seen, second["image_id"].tolist(), theirs)
        counts = findings.overlap["kind"].value_counts()
        facts["overlap"] = {"images": len(second)} | {
            kind: int(counts.get(kind, 0)) for kind in ("id", "bytes", "copy", "retake")
        }
        paths |= {f"with/{name}": image for name, image in zip(second["image_id"], second["image"], strict=True)}
    if given is not None and split is not None:
        facts["split"], findings.faults = _checked(given, table, split, merging)
    return findings, paths


def _fingerprints(table: pd.DataFrame, doing: str) -> list[near_duplicates.Fingerprint]:
    paths = [Path(image) for image in table["image"]]
    return near_duplicates.fingerprint_images(tracked(paths, doing), table["mask"].notna())


def _described(found: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Add lesion and diagnosis of either image to the pairs, and whether what else is known of them agrees."""
    cases = table.set_index("image_id")
    for which in ("first", "second"):
        for name in ("lesion_id", "dx"):
            found[f"{name}_{which}"] = found[which].map(cases[name].astype(object))
    first, second = (cases.loc[found[which]].reset_index(drop=True) for which in ("first", "second"))
    agrees = (first["age"].astype(float) - second["age"].astype(float)).abs() <= YEARS
    for name in ("sex", "localization"):
        agrees &= (first[name] == second[name]).fillna(False).astype(bool)
    same = found["lesion_id_first"] == found["lesion_id_second"]
    return found.assign(same_lesion=same, metadata_agrees=agrees.to_numpy())


def _facts(table: pd.DataFrame, compared: pd.DataFrame, found: pd.DataFrame, groups: pd.Series) -> dict[str, Any]:
    leaky = sources.is_leaky(table)
    train, test = _default_sizes(len(table))
    by_lesion, by_group = (certificate.count_siblings(names, train, test) for names in (table["lesion_id"], groups))
    across, others = (pairs[~pairs["same_lesion"]] for pairs in (found, compared[compared["kind"] == ""]))
    return {
        "images": len(table),
        "lesions": None if leaky else int(table["lesion_id"].nunique()),
        "groups": int(groups.nunique()),
        "pairs": {
            kind: {"within_lesions": int(((found["kind"] == kind) & found["same_lesion"]).sum()),
                   "across_lesions": int((across["kind"] == kind).sum())}
            for kind in KINDS
        },
        "metadata_agrees": {  # a witness that the search did not ask: sex, site, and age within 5 years
            "pairs_across_lesions": int(across["metadata_agrees"].sum()),
            "share_of_compared_pairs": round(float(others["metadata_agrees"].mean()), 4) if len(others) else None,
        },
        "published": _published(found, table),
        "merged": certificate.merged_groups(
            table, [(str(a), str(b)) for a, b in zip(across["first"], across["second"], strict=True)]
        ),
        "split_by_image": {
            "train": train,
            "test": test,
            "seeds": certificate.SEEDS,
            "test_images_with_a_sibling_in_training": {
                "by_lesion": None if leaky else _mean(by_lesion),
                "by_group": _mean(by_group),
            },
        },
    }  # fmt: skip


def _default_sizes(images: int) -> tuple[int, int]:
    """Count training and test images of one of five folds with an eighth of the rest as validation: the default."""
    test = round(images / 5)
    return round((images - test) * (1 - splits.VAL_SHARE)), test


def _mean(counts: NDArray[np.int64]) -> dict[str, float]:
    return {"mean": float(counts.mean()), "sd": round(float(counts.std(ddof=1)), 2)}


def _published(found: pd.DataFrame, table: pd.DataFrame) -> dict[str, int]:
    """Count the published pairs that are here, and those of them that were found."""
    here = {frozenset(pair) for pair in lesion_groups.apart(lesion_groups.PUBLISHED, table)}
    ours = {frozenset(pair) for pair in zip(found["first"], found["second"], strict=True)}
    return {"here": len(here), "found": len(here & ours)}


def _overlap(
    ids: Sequence[str],
    seen: Sequence[near_duplicates.Fingerprint],
    other_ids: Sequence[str],
    others: Sequence[near_duplicates.Fingerprint],
) -> pd.DataFrame:
    """Find the images of the first data set that are in the second: by id, by bytes, as a copy, as a retake."""
    compared = near_duplicates.compare([*ids, *other_ids], [*seen, *others], between=len(ids), track=tracked)
    same = sorted(set(ids) & set(other_ids))
    by_id = pd.DataFrame({"first": same, "second": same, "kind": "id"}, columns=near_duplicates.COLUMNS)
    return pd.concat([by_id, compared[compared["kind"] != ""]], ignore_index=True)


def _checked(
    split: pd.DataFrame, table: pd.DataFrame, path: Path, pairs: Sequence[lesion_groups.DuplicatePair]
) -> tuple[dict[str, Any], list[InputError]]:
    """Make a split's certificate, and find what is wrong with it."""
    try:
        splits.check(split, table, path, pairs, given=True)
        faults: list[InputError] = []
    except Faults as found:
        faults = [fault for fault in found.faults if isinstance(fault, InputError)]
    if set(split["image_id"]) != set(table["image_id"]) or split["image_id"].duplicated().any():
        return {"split_sha256": digest(path)}, faults
    return certificate.certificate(split, table, digest(path), pairs, "found here"), faults


def lines(findings: Findings) -> list[str]:
    """Say the findings in sentences.

    Args:
        findings: as `audit` returns them.
    """
    facts = findings.facts
    known = f"{facts['lesions']:,} lesions" if facts["lesions"] is not None else "no lesion ids"
    said = [f"{facts['images']:,} images, {known}, {facts['groups']:,} groups after joining what was found"]
    for kind, counts in facts["pairs"].items():
        across = f"{counts['across_lesions']:,} pairs" if facts["lesions"] is None else (
            f"{counts['within_lesions']:,} pairs within a lesion, {counts['across_lesions']:,} under two lesion ids"
        )  # fmt: skip
        said.append(f"{KINDS[kind]}: {across}")
    if facts["published"]["here"]:
        said.append(f"of {facts['published']['here']} published pairs, {facts['published']['found']} were found")
    if (witness := facts["metadata_agrees"])["pairs_across_lesions"]:
        said.append(
            f"sex, site and age agree in {witness['pairs_across_lesions']:,} of the pairs under two lesion ids, "
            f"and in {witness['share_of_compared_pairs'] or 0:.1%} of those that were compared and found different"
        )
    for group in facts["merged"] if facts["lesions"] is not None else ():
        if len(group["dx"]) > 1:
            said.append(f"one group, several diagnoses ({', '.join(group['dx'])}): {', '.join(group['images'])}")
    alone = facts["split_by_image"]
    left = alone["test_images_with_a_sibling_in_training"]["by_group"]
    said.append(
        f"a split by image would leave {left['mean']:,.1f} of {alone['test']:,} test images "
        f"({left['mean'] / max(alone['test'], 1):.1%}, mean of {alone['seeds']} seeds) with a sibling in training"
    )
    if "overlap" in facts:
        counts = ", ".join(f"{count:,} by {kind}" for kind, count in facts["overlap"].items() if kind != "images")
        said.append(f"overlap with {facts['overlap']['images']:,} other images: {counts}")
    if "split" in facts:
        said.append(
            "no lesion is in more than one split" if not findings.faults else "the split has faults, listed below"
        )
    return said
