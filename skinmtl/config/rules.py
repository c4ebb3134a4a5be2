"""Faults that no single node shows: parts of a run that do not go together."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skinmtl.config.build import Node, value_of
from skinmtl.config.diagnosis_groups import check_groups
from skinmtl.config.schema import Argument, arguments, find, is_given, own_packages
from skinmtl.config.signatures import ANY
from skinmtl.config.tasks import CONF, named, refusal
from skinmtl.config.trainer_rules import trainer_faults
from skinmtl.errors import ConfigError, Faults, SkinmtlError

# Names that a task cannot have: keys of every batch, and what torch's dict of modules calls its own.
TAKEN = (
    "image",
    "mask",
    "has_mask",
    "dx",
    "index",
    "share",
    "value",
    "tasks",
    "type",
    "float",
    "double",
    "half",
    "train",
)


def faults_across(tree: Node) -> Iterator[SkinmtlError]:
    """Yield what no single constructor can see."""
    tasks = tree.get("tasks", [])
    if faults := list(_name_faults(tree, tasks)):
        yield from faults
        return
    yield from _task_faults(tree, tasks)
    yield from _target_faults(tree, tasks)
    yield from _group_faults(tree["data"].get("diagnoses"))
    yield from _weighting_faults(tree, tasks)
    yield from _class_weight_faults(tree, tasks)
    data = tree["data"]
    fold, folds = value_of(data, "fold"), value_of(data, "folds")
    if value_of(data, "split") is None and fold >= folds:
        yield ConfigError("data.fold", f"{fold} of {folds} folds, which are counted from 0", f"use 0 to {folds - 1}")
    weights = tree["model"].get("weights")
    if weights not in (None, "imagenet") and not Path(weights).expanduser().is_file():
        yield ConfigError("model.weights", f"there is no file {weights}", "give null, imagenet or a file of weights")
    yield from trainer_faults(tree["trainer"], tree.get("keep", "best"))
    trainer = tree["trainer"]
    scaled = str(trainer.get("precision")) in ("16", "16-mixed")
    if scaled and trainer.get("gradient_clip_val") and tree["optim"].get("fused"):
        what = "gradients of float16 cannot be clipped for a fused optimiser"
        yield ConfigError("optim.fused", what, "set it to false, or trainer.precision=bf16-mixed")
    for name, node in tree["callbacks"].items():
        if node is not None:
            yield from _callback_faults(f"callbacks.{name}", node, tasks, tree)


def _name_faults(tree: Node, tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Yield tasks that are none, or that are named as nothing can be; nodes that no name asks for."""
    if not tasks or len(set(tasks)) < len(tasks):
        yield ConfigError("tasks", f"{tasks} is not a choice of tasks", f"use one or several of {', '.join(named())}")
    for name in tasks:
        if name not in tree["task"]:
            yield refusal(name)
        elif not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in TAKEN or _is_of_modules(name):
            fix = "use lower-case letters, digits and _, and another name where it is taken"
            yield ConfigError(f"task.{name}", "no task can be called so", fix)
    for name in tree["task"].keys() - set(tasks):
        yield ConfigError(f"task.{name}", f"a task, but tasks are {tasks}", f"add {name} to tasks, or remove it")


def _kinds(tree: Node, tasks: Sequence[str]) -> dict[str, Any]:
    """Give the class of each task by its name."""
    return {name: find(tree["task"][name]["_target_"]) for name in tasks}


def _callback_faults(where: str, node: Node, tasks: Sequence[str], tree: Node) -> Iterator[ConfigError]:
    """Yield a watched value that nothing logs, or that is watched for the wrong end."""
    monitor = node.get("monitor")
    if monitor is None:
        return
    # A training epoch's scores are known after its validation, when a callback looks unless told otherwise.
    stage = "train" if node.get("check_on_train_epoch_end") else "val"
    better = {f"{stage}/{name}": end for name, end in (("score", "max"), ("loss", "min"))}
    for task, kind in _kinds(tree, tasks).items():
        logged = {"loss": "min", **getattr(kind, "logged", {})}
        better |= {f"{stage}/{task}/{name}": end for name, end in logged.items()}
    scalars = list(better)
    if monitor not in scalars:
        # What a callback of the user's own logs is known once it has: `skinmtl.training.failures` says what there is.
        others = any(_is_of_the_user(other) for other in tree["callbacks"].values() if other is not None)
        near = difflib.get_close_matches(str(monitor), scalars, 1, 0.9 if others else 0.6)
        if others and not near:
            return
        fix = f"did you mean {near[0]!r}?" if near else f"it should be {', '.join(scalars)}"
        what = f"{'training' if stage == 'train' else 'validation'} does not log {monitor!r}"
        yield ConfigError(f"{where}.monitor", what, fix)
        return
    known = arguments(find(node["_target_"]))
    if "mode" in known:
        mode, end = value_of(node, "mode"), better[monitor]
        if mode in ("min", "max") and mode != end:
            yield ConfigError(f"{where}.mode", f"{mode!r}, but of {monitor} the {end} is best", f"use {end}")


def _is_of_the_user(node: Node) -> bool:
    return str(node["_target_"]).partition(".")[0] in {name.partition(".")[0] for name in own_packages()}


def _is_of_modules(name: str) -> bool:
    """Tell whether torch's dict of modules has an attribute of this name, and so cannot have a module of it."""
    from torch import nn  # not before the names of a config are checked

    return hasattr(nn.ModuleDict, name)


def _task_faults(tree: Node, tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Yield losses of tasks that the run does not train, and tasks without a loss."""
    for task, node in tree["loss"].items():
        if task not in (*tasks, *named()):
            fix = f"use {' or '.join(f'loss.{name}' for name in tasks)}"
            yield ConfigError(f"loss.{task}", "there is no such task", fix)
        elif node is not None and task not in tasks:
            yield ConfigError(
                f"loss.{task}", f"a loss, but tasks are {tasks}", f"add {task} to tasks, or loss/{task}=none"
            )
    for task in tasks:
        if tree["loss"].get(task) is None:
            fix = f"choose one with loss/{task}="
            if not (CONF / "loss" / task).is_dir():  # it has no group of losses of its own
                fix = f"give it one in the task's file, or +loss/<group>@loss.{task}=<name>, of conf/loss/<group>"
            yield ConfigError(f"loss.{task}", "the task has no loss", fix)


def _target_faults(tree: Node, tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Yield what is done to the targets of a task that the run does not train, or until little is left of them."""
    shuffled, mixing = (tree["data"].get(key) for key in ("shuffled", "mixing"))
    if shuffled is not None and shuffled not in tasks:
        what = f"{shuffled}, but tasks are {tasks}"
        yield ConfigError("data.shuffled", what, f"add {shuffled} to tasks, or use null")
    if mixing is None:
        return
    kinds = _kinds(tree, tasks)
    unmixed = [name for name, kind in kinds.items() if not kind.mixes]
    if len(unmixed) == len(tasks):
        fix = "use mixing=none, or add one of images' classes"
        yield ConfigError("data.mixing", f"tasks are {tasks}, without targets to mix", fix)
    elif unmixed and mixing["_target_"].endswith(".Mixup") and mixing.get("p") == 1:
        what = "1 leaves next to no image with a mask to train on"
        yield ConfigError(
            "data.mixing.p", what, f"give less, such as 0.5, or leave {' and '.join(unmixed)} out of tasks"
        )


def _group_faults(groups: object) -> Iterator[SkinmtlError]:
    """Yield what is wrong with groups of diagnoses that no data could have."""
    if groups is not None:
        try:
            check_groups(groups)  # type: ignore[arg-type]
        except Faults as found:
            yield from found.faults


def _weighting_faults(tree: Node, tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Yield weights of tasks that the run does not train, and weights that two parts would learn."""
    method, weighting = (find(tree[key]["_target_"]) for key in ("gradients", "weighting"))
    wanted = getattr(weighting, "gradients", None)
    if wanted not in (None, method.__name__):
        what = f"it goes with gradients={str(wanted).lower()}, but gradients are those of {method.__name__}"
        yield ConfigError("weighting", what, "use weighting=fixed with other gradients, or leave gradients= out")
    learned = getattr(method, "weighs", False)
    if learned and wanted is None and len(tasks) > 1 and not tree["weighting"]["_target_"].endswith(".Fixed"):
        what = "the method of gradients learns the weights of the losses, and so would this"
        yield ConfigError("weighting", what, "use weighting=fixed, or another method of gradients")
    yield from _weight_faults(tree["weighting"], arguments(weighting), tasks)


def _weight_faults(node: Node, known: Mapping[str, Argument], tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Weights by task, where a weighting takes them: of tasks that are not trained, or all nothing."""
    if ANY not in known:
        return
    for name, value in node.items():
        # A weight left as it comes is no wish; another one is.
        if name == "_target_" or name in known or name in tasks or (name in named() and value == 1):
            continue
        near = difflib.get_close_matches(name, tasks, 1)
        fix = f"did you mean {f'weighting.{near[0]}'!r}?" if near else f"add {name} to tasks, or leave it at 1.0"
        yield ConfigError(f"weighting.{name}", f"a weight, but tasks are {tasks}", fix)
    if all(node.get(task) == 0 for task in tasks):
        yield ConfigError("weighting", "every task weighs nothing", "give one of them a weight above 0")


def _class_weight_faults(tree: Node, tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Yield class weights that no loss takes."""
    asked = tree.get("class_weights", "auto")
    if asked in ("auto", "none"):
        return
    classed = [name for name, kind in _kinds(tree, tasks).items() if kind.weighs_classes]
    losses = {name: find(tree["loss"][name]["_target_"]) for name in classed if tree["loss"].get(name) is not None}
    if not classed:
        what = f"{asked}, but tasks are {tasks}, without classes of images"
        yield ConfigError("class_weights", what, "add a classification to tasks, or use auto")
    elif losses and not any(is_given(loss, "class_weights") for loss in losses.values()):
        each = " and ".join(f"{loss.__name__}, the loss of {name}," for name, loss in losses.items())
        what = f"{asked}, but {each} takes no class weights"
        fix = f"use auto or none, or loss/{classed[0]}=cross_entropy, label_smoothing or focal"
        yield ConfigError("class_weights", what, fix)
