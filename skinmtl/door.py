"""What `python train.py` does around a run: help, Hydra, one-line errors, exit codes, a sweep's table."""

from __future__ import annotations

import difflib
import logging
import os
import re
import secrets
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from skinmtl.errors import ConfigError, SkinmtlError

KEYS = {
    "experiment=": "what to run; one of those above",
    "study=": "several runs and one answer; one of those above",
    "data.root=": "the folder of HAM10000, as downloaded",
    "data.size=": "[height,width] in pixels, or one number for a square",
    "data.batch_size= data.workers=": "photographs a step; processes that load them",
    "data.fold= data.folds=": "which test fold, of how many; no lesion is in two",
    "data.allow_leak=": "true accepts photographs without lesion ids; every score is stamped LEAKY",
    "data.cache=": "auto decodes once into outputs/.cache; off decodes each time",
    "model.arch= model.encoder=": "the decoder; any encoder of smp, or of timm as tu-<name>",
    "model.weights= model.dropout=": "null, imagenet or a file; dropout before the class head",
    "tasks=": "[seg,cls], [seg] or [cls]",
    "loss/seg= loss/cls=": "bce, dice, dice_bce; cross_entropy",
    "weighting.seg= weighting.cls=": "weights of the two losses",
    "optim= optim.lr= optim.weight_decay=": "adamw, adam, sgd",
    "schedule=": "cosine, step, plateau, constant",
    "sampler= augment=": "shuffle; none, light, strong",
    "trainer= trainer.max_epochs=": "auto, cpu, gpu; any argument of Lightning's Trainer",
    "trainer.devices= trainer.precision=": "how many; auto, bf16-mixed, 32-true, 16-mixed",
    "callbacks= logger=": "default, ema; csv, wandb",
    "seed=": "weights, order, augmentation and dropout follow from it",
    "resume= init_from=": "auto or an unfinished run's folder; a run whose weights to start from",
}


def main(conf: Path, argv: Sequence[str]) -> int:
    """Run the command line against a folder of configs; gives the exit code."""
    if "--help" in argv or "-h" in argv:
        print(usage(conf))
        return 0
    OmegaConf.register_new_resolver("run_id", _run_id, use_cache=True, replace=True)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own words and exit 1 whatever went wrong
    failed: list[BaseException] = []
    sweeps: set[Path] = set()

    def task(cfg: DictConfig) -> float | None:
        try:
            return _job(cfg, sweeps, Path(argv[0]).resolve())
        except (SkinmtlError, KeyboardInterrupt) as error:
            failed.append(error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            return None

    try:
        hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(task)()
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException as error:
        if not failed:
            failed.append(error)
    for sweep in sweeps:
        from skinmtl.study import print_table

        print_table(sweep)
    return _answer(failed, conf)


def _job(cfg: DictConfig, sweeps: set[Path], script: Path) -> float:
    running = HydraConfig.get()
    if running.mode == RunMode.MULTIRUN:
        from skinmtl.study import job

        sweeps.add(Path(running.sweep.dir))
        return job(cfg, script)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from skinmtl import config
    from skinmtl.train import calm, run

    OmegaConf.resolve(cfg)
    with calm():
        config.check(cfg, run)
    folder = Path(running.runtime.output_dir)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return run(**{str(key): value for key, value in cfg.items()}, folder=folder)


def _run_id() -> str:
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(2)}"


def _answer(failed: Sequence[BaseException], conf: Path) -> int:
    """Print each different failure as its lines; gives the exit code."""
    codes = set()
    for error in {str(error): error for error in failed}.values():
        if os.environ.get("SKINMTL_DEBUG"):
            traceback.print_exception(error)
        known = error if isinstance(error, SkinmtlError) else _refusal(error, conf)
        if known is not None:
            codes.add(known.exit_code)
            for line in str(known).splitlines():
                print(f"skinmtl: error: {line}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            codes.add(75)
            print("skinmtl: stopped", file=sys.stderr)
        else:
            codes.add(1)
            if not os.environ.get("SKINMTL_DEBUG"):
                traceback.print_exception(error)
            print(f"skinmtl: error: our bug: {type(error).__name__}: {error}; fix: please report it", file=sys.stderr)
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def _refusal(error: BaseException, conf: Path) -> SkinmtlError | None:
    """Hydra's own refusals in our words."""
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    text = str(error)
    if found := re.search(r"Could not (?:find|load) '([\w/.]+)/([^'/]+)'", text):
        group, name = found.groups()
        names = sorted(file.stem for file in (conf / group).glob("*.yaml"))
        return ConfigError(f"{group}={name}", "there is none of this name", _guess(name, names))
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1].lstrip("+~")
        keys = _all_keys(conf)
        return ConfigError(key, "there is no such key", _guess(key, keys))
    return ConfigError("command line", " ".join(text.split()), "see python train.py --help")


def _guess(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1, 0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return guess + (f"there are {', '.join(names)}" if len(names) < 30 else "see python train.py --help")


def _all_keys(conf: Path) -> list[str]:
    """Every key and group of the default config."""
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        cfg = hydra.compose("config")
    keys: list[str] = []

    def walk(node: object, where: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                keys.append(f"{where}{key}")
                walk(value, f"{where}{key}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    groups = [str(folder.relative_to(conf)) for folder in conf.rglob("*") if folder.is_dir()]
    return keys + groups


def usage(conf: Path) -> str:
    """The help: experiments and studies by their files' first words, and the keys that stay."""
    lines = ["python train.py experiment=<name> [key=value ...]", "", __doc__.splitlines()[0] if __doc__ else "", ""]
    for group in ("experiment", "study"):
        lines.append(f"{group}=")
        lines += [f"  {file.stem:26}{_headline(file)}" for file in sorted((conf / group).glob("*.yaml"))]
        lines.append("")
    lines.append("keys")
    lines += [f"  {key:42}{words}" for key, words in KEYS.items()]
    lines += ["", "Several values, in processes of their own: python train.py -m experiment=a,b weighting.seg=0.5,1 seed=0,1"]
    lines += ["The whole config of a command: add --cfg job. A new key, say of Lightning's Trainer: +trainer.<key>=<value>."]
    lines += ["Exit codes: 0 done, 1 our bug, 2 input or config, 3 diverged, 4 disk or memory, 75 interrupted."]
    return "\n".join([*lines, "Research use only: not a medical device."])


def _headline(file: Path) -> str:
    """The first comment of a config file that is not for Hydra."""
    words = (line.removeprefix("#").strip() for line in file.read_text(encoding="utf-8").splitlines())
    return next((line for line in words if line and not line.startswith("@package")), "")
