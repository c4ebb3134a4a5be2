"""Names of before by the names of today: what saved configs, scores and users' own experiment files may still say.

An entry stays for good, for a run folder is opened years later. Whoever renames what a config can name adds one here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

# Modules of skinmtl by the names that version 0.1.0 had for them, then classes that went elsewhere than their module.
MODULES = {
    "answer": "studies.results",
    "audit": "audit.leaks",
    "baselines": "evaluation.baselines",
    "callbacks": "training.callbacks.metrics_csv",
    "checkpoints": "runs.checkpoints",
    "cli": "cli.commands",
    "config": "config.check",
    "constructors": "config.schema",
    "data.also": "data.auxiliary",
    "data.contents": "data.file_hashes",
    "data.dermatoscopy": "data.synthetic.dermatoscopy",
    "data.diagnoses": "data.diagnosis_groups",
    "data.duplicates": "data.lesion_groups",
    "data.images": "data.images.reading",
    "data.jpeg": "data.images.jpeg",
    "data.lesions": "data.synthetic.lesions",
    "data.lookalikes": "audit.near_duplicates",
    "data.masks": "data.mask_classes",
    "data.profiles": "data.images.icc_profiles",
    "data.progress": "terminal",
    "data.records": "data.cache_file",
    "data.synthetic": "data.synthetic.generator",
    "decoders": "models.decoders",
    "door": "cli.train",
    "encoders": "models.encoders",
    "evaluate": "evaluation.evaluate",
    "facts": "runs.record",
    "foreign": "config.allowlist",
    "gradients": "balancing.gradients",
    "heads": "models.heads",
    "jobs": "studies.jobs",
    "lettering": "figures.fonts",
    "logs": "terminal",
    "losses.cls": "losses.classification",
    "losses.seg": "losses.segmentation",
    "losses.terms": "losses.common",
    "metrics": "tasks.metrics",
    "module": "training.lightning_module",
    "network": "models.multitask_net",
    "optim": "training.optim",
    "overrides": "config.overrides",
    "page": "reports.html",
    "photographs": "data.images.listing",
    "predict": "evaluation.predict",
    "prediction_folder": "evaluation.prediction_folder",
    "predictions": "runs.predictions",
    "processes": "distributed.launch",
    "ranks": "distributed.collectives",
    "rarity": "balancing.class_weights",
    "report": "reports.run",
    "resumable": "training.callbacks.resumable",
    "runs": "runs.run",
    "scores": "evaluation.scores",
    "settings": "studies.compare",
    "signatures": "config.signatures",
    "spelling": "runs.cells",
    "study": "studies.sweep",
    "tasks": "tasks.base",
    "tracking": "tracking.wandb",
    "train": "training.run",
    "train.build": "training.build",
    "train.record": "training.record",
    "train.resume": "training.resume",
    "weighting": "balancing.weighting",
    "weights": "models.pretrained",
}
NAMES = {
    "callbacks.Best": "training.callbacks.best_checkpoint.Best",
    "callbacks.Clock": "training.callbacks.clock.Clock",
    "callbacks.EpochLines": "training.callbacks.progress.EpochLines",
    "callbacks.Finite": "training.callbacks.nonfinite.Finite",
    "callbacks.Freeze": "training.callbacks.freeze.Freeze",
    "callbacks.Steps": "training.callbacks.clock.Steps",
    "data.also.Also": "data.auxiliary.AuxiliaryData",
    "data.datamodule.Loader": "data.dataset.Loader",
    "data.datamodule.Mix": "data.dataset.Mix",
    "data.datamodule.Samples": "data.dataset.Samples",
    "processes.Stop": "distributed.signals.Stop",
}
# Dotted keys of configs, each with all that stands below it.
KEYS: Mapping[str, str] = {"also": "auxiliary", "data.also": "data.auxiliary", "logger.photographs": "logger.images"}
# Words that a key takes, by dotted key and by what they were.
VALUES: Mapping[str, Mapping[str, str]] = {"data.split_by": {"photograph": "image"}}
# Scores, by what version 2 of a predictions table calls them.
SCORES = {"mean_image_hd95": "mean_image_hd95_pooled", "ece": "ece_rank_bins"}


def target(name: str) -> str:
    """Give today's name of what a `_target_` names: `skinmtl.models.heads.Head` for `skinmtl.heads.Head`."""
    package, _, rest = name.partition(".")
    module, _, last = rest.rpartition(".")
    if package != "skinmtl":
        return name
    return f"skinmtl.{NAMES.get(rest) or f'{MODULES.get(module, module)}.{last}'.lstrip('.')}"


def key(name: str) -> str:
    """Give today's name of a dotted key, or of a group of `conf/` on the command line."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if (new := KEYS.get(".".join(parts[:count]))) is not None:
            return ".".join([new, *parts[count:]])
    return name


def value(name: str, text: str) -> str:
    """Give today's word for a value of a dotted key, as a command or a config writes it."""
    return VALUES.get(name, {}).get(text, text)


def renamed(cfg: DictConfig, warn: bool = False) -> DictConfig:
    """Give a config by today's names; one that has no other is given as it is.

    Args:
        cfg: a saved or a composed config.
        warn: say each old name once, with the new one, to whoever can change the file.
    """
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    found: dict[str, str] = {}
    _rename_keys(tree, found)
    _rename_values(tree, found)
    _rename_targets(tree, found)
    for old, new in found.items() if warn else ():
        log.warning("%s is now called %s: write that", old, new)
    return OmegaConf.create(tree) if found else cfg


def _rename_keys(tree: dict[Any, Any], found: dict[str, str]) -> None:
    for old, new in KEYS.items():
        *above, last = old.split(".")
        node = _below(tree, above)
        if node is None or last not in node:
            continue
        value = node.pop(last)
        *above, last = new.split(".")
        home = tree
        for part in above:
            home = home.setdefault(part, {})
        home[last] = value
        found[old] = new


def _rename_values(tree: dict[Any, Any], found: dict[str, str]) -> None:
    for dotted in VALUES:
        *above, last = dotted.split(".")
        node = _below(tree, above)
        if node is not None and (old := node.get(last)) != (new := value(dotted, str(old))) and isinstance(old, str):
            node[last] = new
            found[f"{dotted}={old}"] = f"{dotted}={new}"


def _below(tree: object, keys: Sequence[str]) -> dict[Any, Any] | None:
    for name in keys:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else None


def _rename_targets(node: object, found: dict[str, str]) -> None:
    if isinstance(node, dict):
        old = node.get("_target_")
        if isinstance(old, str) and (new := target(old)) != old:
            found[old] = node["_target_"] = new
    inside = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for part in inside:
        _rename_targets(part, found)
