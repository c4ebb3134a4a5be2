"""A run that starts from the weights of another, and what those have seen."""

from __future__ import annotations

import os
from typing import Any

import pandas as pd

from skinmtl.data import lesion_groups
from skinmtl.data.datamodule import DataModule
from skinmtl.distributed import collectives
from skinmtl.errors import ConfigError
from skinmtl.evaluation.predict import network_state
from skinmtl.files import write_text
from skinmtl.runs.checkpoints import load as load_checkpoint
from skinmtl.runs.record import dig
from skinmtl.runs.run import Run
from skinmtl.training.lightning_module import MultiTaskModule


def start_from(parent: Run, module: MultiTaskModule, data: DataModule, here: Run) -> dict[str, Any]:
    """Take another run's best weights; refuse what has seen these test lesions or does not fit.

    What those weights have seen is kept, as by `keep_seen`.

    Args:
        parent: the run whose weights are taken.
        module: gets them.
        data: the images of the new run; labelled LEAKY or shuffled where the parent is.
        here: the new run.

    Returns:
        What run.json says of the parent: its id, split, data and fold.

    Raises:
        ConfigError: it has learned from test lesions of this run, or its weights do not fit.
    """
    checkpoint = load_checkpoint(parent.checkpoint())
    facts = checkpoint["skinmtl"]
    split = pd.read_csv(parent.split_file, dtype=str, keep_default_na=False)
    seen = split.loc[split[f"fold_{facts['fold']}"] != "test", ["image_id", "group"]]
    if (file := parent.path / "seen.csv").is_file():
        seen = pd.concat([seen, pd.read_csv(file, dtype=str, keep_default_na=False)]).drop_duplicates()
    test = data.split[data.split[f"fold_{data.fold}"] == "test"]
    known = test["image_id"].isin(_met(seen, data)) | (test["group"].isin(seen["group"]) & (test["group"] != ""))
    if known.any():
        what = f"{parent.path.name} has learned from lesions of {int(known.sum())} of the {len(test)} test images"
        raise ConfigError("init_from", what, f"use data.split={os.path.relpath(parent.split_file)} and its fold")
    keep_seen(here, data, seen)
    # Without lesion ids there, nobody knows which lesions it has seen; those of auxiliary data were vouched for beside
    # that run's images alone.
    unknown = bool((seen["group"] == "").any()) and not data.is_of(facts["data_hash"])
    data.leaky = data.leaky or unknown or bool(parent.info().get("leaky"))
    data.shuffled = data.shuffled or dig(parent.info(), "shuffled") or None
    try:
        module.network.load_state_dict(network_state(checkpoint["state_dict"]))
    except RuntimeError as error:
        theirs, ours = list(facts["tasks"]), list(module.tasks)
        if set(theirs) != set(ours):
            what = f"{parent.path.name} has weights of the tasks {', '.join(theirs)}, this run learns {', '.join(ours)}"
            raise ConfigError("init_from", what, f"use 'tasks=[{','.join(theirs)}]', or a run of these tasks") from None
        what = f"weights of {parent.path.name} do not fit: {' '.join(str(error).split())[:300]}"
        raise ConfigError("init_from", what, "use the model and tasks of that run") from None
    return {"run_id": parent.path.name} | {key: facts[key] for key in ("split_hash", "data_hash", "fold")}


def _met(seen: pd.DataFrame, data: DataModule) -> set[str]:
    """Give the ids of images at data.root that show a seen image, its lesion, or one that a duplicate joins to it.

    Args:
        seen: `image_id` and `group`, blank where no lesion is known.
        data: the images of the new run.
    """
    first = data.table[data.source == 0]
    ids = set(seen["image_id"])
    # What was merged there may not be merged here, and the other way round: lesions of either side count.
    lesions = {name for group in seen["group"].unique() for name in [group, *group.split("+")]} - {""}
    both = pd.concat([first[["image_id", "lesion_id"]], seen.rename(columns={"group": "lesion_id"})], ignore_index=True)
    pairs = lesion_groups.pairs(data.duplicates, both)
    ids |= {name for pair in pairs if not ids.isdisjoint(pair) for name in pair}
    groups = data.groups.loc[first.index]
    met = groups[first["image_id"].isin(ids) | first["lesion_id"].isin(lesions)]
    return set(first["image_id"][groups.isin(met)])


def keep_seen(here: Run, data: DataModule, before: pd.DataFrame | None = None) -> None:
    """Keep in seen.csv what a run's weights have seen beside its own split, for whoever starts from them.

    That is `before`, and what its auxiliary data sets train on.

    Args:
        here: the run.
        data: its images.
        before: what the weights it starts from have seen: `image_id` and `group`, blank where no lesion is known.
    """
    further = data.table.loc[data.source > 0, ["image_id", "lesion_id"]].rename(columns={"lesion_id": "group"})
    seen = further if before is None else pd.concat([before, further])
    if len(seen) and collectives.rank() == 0:
        write_text(here.path / "seen.csv", seen.to_csv(index=False))
