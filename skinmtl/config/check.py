"""The check of every config, and the only place where anything is built from one.

Plain YAML with `_target_`; the typed constructor is the schema (`skinmtl.config.schema`). An argument added to a
constructor is a key from then on, with no line to change here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from skinmtl.config import allowlist
from skinmtl.config.build import Node, value_of
from skinmtl.config.diagnosis_groups import check_groups
from skinmtl.config.hardware import resolve_accelerator, resolve_precision
from skinmtl.config.run_config import RunConfig
from skinmtl.config.schema import Argument, arguments, find, is_given, outline, own_packages
from skinmtl.config.signatures import ANY, UNREAD
from skinmtl.config.tasks import named, refusal, settle
from skinmtl.errors import ConfigError, Faults, SkinmtlError, no_package

# What a run asks of each part, by methods that only such a thing has: a loss is no network.
ROLES = {
    "task": ("learn", "labelled", "metric", "count", "head", "scoring"),
    "data": ("train_dataloader", "val_dataloader", "class_counts", "certificate"),
    "sampler": ("order", "weights"),
    "model": ("forward",),
    "loss": ("forward",),
    "weighting": ("terms", "weights", "start_step", "end_epoch"),
    "gradients": ("combine", "weigh"),
    "optim": ("zero_grad", "step"),
    "schedule": ("on",),
    "trainer": ("fit",),
    "callbacks": ("on_train_epoch_end", "state_dict"),
    "logger": ("log_run", "start", "finish"),
}
BY_NAME = ("task", "loss", "callbacks")  # several parts, each under a name of its own, where null is none
ONE = ("data", "augment", "sampler", "model", "weighting", "gradients", "optim", "schedule", "trainer")
PACKAGED = ("experiment", "study", "arm", "global")  # groups of conf/ whose files say things about the whole config
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
MOVED = ("class_weights",)  # once an argument that a config gave to a part, now a key of the whole run
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
# Name and arguments of a target, at a key; None where nothing is known of it.
Look = Callable[[object, str], "tuple[str, Mapping[str, Argument]] | None"]


def check_names(cfg: DictConfig) -> None:
    """Look for what source texts alone can tell, before torch is imported, which takes seconds: names, plain types.

    Raises:
        Faults: every fault found, each with its dotted key.
    """
    settle(cfg)
    faults: list[SkinmtlError] = []
    tree = _resolved(cfg, "", faults)
    faults += _call_faults(tree, ("the config", arguments(RunConfig)), "", tree)
    for key, node in tree.items():
        faults += _shape_faults(str(key), node)
        faults += _walk(node, str(key), tree, outline)
    if faults:
        raise Faults(faults)


def check(cfg: DictConfig) -> None:
    """Look at a whole config before anything is built or any data is read.

    A whole number that is written as 8.0 where only an integer fits becomes 8 in it.

    Args:
        cfg: a composed or a saved config.

    Raises:
        Faults: every fault found, each with its dotted key.
    """
    settle(cfg)
    faults: list[SkinmtlError] = []
    tree = _resolved(cfg, "", faults)
    assert isinstance(tree, dict)
    faults += _call_faults(tree, ("the config", arguments(RunConfig)), "", tree)
    for key, node in tree.items():
        faults += _shape_faults(str(key), node)
        faults += _walk(node, str(key), tree)
    # What looks at several parts leans on each being sound.
    faults = faults or list(_across(tree))
    if faults:
        raise Faults(faults)
    _write_back(cfg, tree)


def check_saved(cfg: Mapping[str, Any], *keys: str) -> None:
    """Look at some nodes of a run's saved config before they are built: anybody may have edited them.

    Raises:
        Faults: every fault that the constructors' signatures show.
    """
    faults: list[SkinmtlError] = []
    for key in keys:
        if key not in cfg:
            faults.append(ConfigError(key, "the saved config has no such part", "restore the run's .hydra/config.yaml"))
            continue
        node = _resolved(cfg[key], key, faults)
        faults += [*_shape_faults(key, node), *_walk(node, key, {key: node})]
    if faults:
        raise Faults(faults)


def _resolved(node: Any, where: str, faults: list[SkinmtlError]) -> Any:
    """A config as plain dicts and lists; what cannot be resolved becomes a fault and a None."""
    if not OmegaConf.is_config(node):
        return node
    places = node.keys() if OmegaConf.is_dict(node) else range(len(node))
    found = {}
    for place in places:
        dotted = f"{where}.{place}".lstrip(".") if OmegaConf.is_dict(node) else f"{where}[{place}]"
        try:
            value = node[place]
        except OmegaConfBaseException as error:
            said = str(error).splitlines()[:1] if not OmegaConf.is_missing(node, place) else []
            faults.append(ConfigError(dotted, said[0] if said else "it has no value", "give it one"))
            continue
        found[place] = _resolved(value, dotted, faults)
    return found if OmegaConf.is_dict(node) else list(found.values())


def _write_back(cfg: Any, tree: Any) -> None:
    """Give a config the integers that its plain copy has in the place of numbers such as 8.0."""
    for place, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list)):
            _write_back(cfg[place], value)
        elif type(value) is int and isinstance(cfg[place], float):
            cfg[place] = value


def _look(target: object, where: str) -> tuple[str, Mapping[str, Argument]]:
    """As `outline`, of the thing itself."""
    constructor = find(target, where)
    return getattr(constructor, "__name__", str(constructor)), arguments(constructor)


def _shape_faults(key: str, node: Any) -> Iterator[ConfigError]:
    """A part without its `_target_`: a typing error would leave it out of everything else."""
    nodes = {key: node}
    if key in BY_NAME and isinstance(node, dict):
        nodes = {f"{key}.{name}": item for name, item in node.items() if item is not None}
    elif key not in ONE and not (key == "logger" and node is not None) and key not in BY_NAME:
        return
    for dotted, item in nodes.items():
        if not isinstance(item, dict):
            yield ConfigError(dotted, f"{item!r} is no part of a run", "choose one of conf/ or give a _target_")
        elif "_target_" not in item:
            yield ConfigError(dotted, "it has no _target_", "start from one of conf/, or give the name of a class")


def _walk(node: Any, where: str, tree: Node, look: Look = _look) -> Iterator[ConfigError]:
    """Faults of every `_target_` at or below a node, as far as those who look see them."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from _walk(item, f"{where}[{i}]", tree, look)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        try:
            seen = look(node["_target_"], where)
        except ConfigError as fault:
            yield fault
        else:
            if look is _look:
                yield from _role_faults(find(node["_target_"]), where)
            if seen is not None:
                yield from _call_faults(node, seen, where, tree)
    for key, item in node.items():
        yield from _walk(item, f"{where}.{key}", tree, look)


def _role_faults(constructor: Callable[..., Any], where: str) -> Iterator[ConfigError]:
    part, _, rest = where.partition(".")
    is_part = rest.count(".") == 0 and bool(rest) == (part in BY_NAME)
    for method in ROLES.get(part, ()) if is_part and isinstance(constructor, type) else ():
        if not hasattr(constructor, method):
            what = f"{constructor.__name__} has no method {method}, which a run asks of it"
            group = {"task": "tasks"}.get(part, part)
            yield ConfigError(f"{where}._target_", what, f"see conf/{group} for classes that do")
            return


def _call_faults(node: Any, seen: tuple[str, Mapping[str, Argument]], where: str, tree: Node) -> Iterator[ConfigError]:
    """Unknown, missing and unfit arguments of one call; a number that is meant as an integer becomes one."""
    name, known = seen
    for key, value in list(node.items()):
        dotted = f"{where}.{key}".lstrip(".")
        if key == "_target_" and where:
            continue
        if str(key).startswith("_") and str(key) not in known:
            if (key, where) != ("_partial_", "optim"):
                yield ConfigError(dotted, "only optim is built in two steps, everything else as it stands", "remove it")
        elif key in PACKAGED and not where:
            yield no_package(str(key))
        elif (argument := known.get(str(key), known.get(ANY))) is None:
            keys = [argument.name for argument in known.values() if argument.is_key]
            yield ConfigError(dotted, f"{name} has no such argument", _guess(str(key), keys, tree, dotted))
        elif (fault := _value_fault(dotted, argument, value, name)) is not None:
            yield fault
        else:
            node[key] = argument.meant(value)
    if where == "optim" and node.get("_partial_") is not True:
        yield ConfigError("optim._partial_", "the run gives the optimiser its parameters", "set it to true")
    missing = [argument.name for argument in known.values() if argument.is_needed and argument.name not in node]
    for key in missing if where != "optim" else ():
        yield ConfigError(f"{where}.{key}".lstrip("."), f"{name} needs it", "give it a value")


def _value_fault(dotted: str, argument: Argument, value: object, name: str) -> ConfigError | None:
    if argument.refusal is not None:
        return None if argument.default in (value, UNREAD) else ConfigError(dotted, *argument.refusal)
    if not argument.is_key:
        fix = f"use {argument.name}={value}, a key of its own" if argument.name in MOVED else "remove it"
        return ConfigError(dotted, f"{name} is given this by the run", fix)
    misfit = argument.misfit(argument.meant(value))
    return None if misfit is None else ConfigError(dotted, f"{value!r} does not fit", misfit)


def _guess(key: str, keys: Sequence[str], tree: Node, where: str) -> str:
    """The nearest of the keys that a node has, else where a key of this very name is at home, else all keys."""
    if near := difflib.get_close_matches(key, keys, 1):
        return f"did you mean {near[0]!r}?"
    if homes := [dotted for dotted in _dotted(tree) if dotted.endswith(f".{key}") and dotted != where]:
        return f"did you mean {homes[0]!r}?"
    return f"it has {', '.join(sorted(keys))}" if keys else "it has none; remove it"


def _dotted(node: Node, where: str = "") -> Iterator[str]:
    """Keys by their whole path, but for a top-level one that holds no more."""
    for key, value in node.items():
        if where:
            yield f"{where}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{where}{key}.")


def _across(tree: Node) -> Iterator[SkinmtlError]:
    """What no single constructor can see."""
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
    yield from _trainer_faults(tree["trainer"], tree.get("keep", "best"))
    trainer = tree["trainer"]
    scaled = str(trainer.get("precision")) in ("16", "16-mixed")
    if scaled and trainer.get("gradient_clip_val") and tree["optim"].get("fused"):
        what = "gradients of float16 cannot be clipped for a fused optimiser"
        yield ConfigError("optim.fused", what, "set it to false, or trainer.precision=bf16-mixed")
    for name, node in tree["callbacks"].items():
        if node is not None:
            yield from _callback_faults(f"callbacks.{name}", node, tasks, tree)


def _name_faults(tree: Node, tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Tasks that are none, or that are named as nothing can be; nodes that no name asks for."""
    if not tasks or len(set(tasks)) < len(tasks):
        yield ConfigError("tasks", f"{tasks} is not a choice of tasks", f"use one or several of {', '.join(named())}")
    for name in tasks:
        if name not in tree["task"]:
            yield refusal(name)
        elif not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in TAKEN:
            fix = "use lower-case letters, digits and _, and another name where it is taken"
            yield ConfigError(f"task.{name}", "no task can be called so", fix)
    for name in tree["task"].keys() - set(tasks):
        yield ConfigError(f"task.{name}", f"a task, but tasks are {tasks}", f"add {name} to tasks, or remove it")


def _kinds(tree: Node, tasks: Sequence[str]) -> dict[str, Any]:
    """The class of each task by its name."""
    return {name: find(tree["task"][name]["_target_"]) for name in tasks}


def _callback_faults(where: str, node: Node, tasks: Sequence[str], tree: Node) -> Iterator[ConfigError]:
    """A watched value that nothing logs, or that is watched for the wrong end."""
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


def _task_faults(tree: Node, tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Losses of tasks that the run does not train, and tasks without a loss."""
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
            yield ConfigError(f"loss.{task}", "the task has no loss", f"choose one with loss/{task}=")


def _target_faults(tree: Node, tasks: Sequence[str]) -> Iterator[ConfigError]:
    """What is done to the training targets of a task that the run does not train, or until little is left of them."""
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
    """Groups of diagnoses that no data could have; None is none."""
    if groups is not None:
        try:
            check_groups(groups)  # type: ignore[arg-type]
        except Faults as found:
            yield from found.faults


def _weighting_faults(tree: Node, tasks: Sequence[str]) -> Iterator[ConfigError]:
    """Weights of tasks that the run does not train, and weights that two parts would learn."""
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
    """Class weights that no loss takes."""
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


def _trainer_faults(node: Node, keep: str) -> Iterator[ConfigError]:
    yield from _length_faults(node, keep)
    yield from _step_faults(node)
    yield from _precision_faults(node)
    if node.get("profiler") not in (None, *allowlist.PROFILERS):
        what = f"{node['profiler']!r} is not known to work in a run"
        yield ConfigError("trainer.profiler", what, f"use {' or '.join(allowlist.PROFILERS)}")
    if node.get("sync_batchnorm") and node.get("accelerator") == "cpu":
        yield ConfigError("trainer.sync_batchnorm", "it works on GPUs alone", "remove it")
    if node.get("num_nodes", 1) != 1:
        yield ConfigError("trainer.num_nodes", "a run trains on one machine", "use 1; a sweep can use others beside it")
    if node.get("strategy", "auto") not in STRATEGIES:
        what = f"{node['strategy']!r} is not how a run's processes work together"
        yield ConfigError("trainer.strategy", what, f"use {' or '.join(STRATEGIES)}")


def _length_faults(node: Node, keep: str) -> Iterator[ConfigError]:
    """How many epochs, and which of them are validated."""
    epochs, every = node.get("max_epochs"), node.get("check_val_every_n_epoch") or 1
    if not isinstance(epochs, int) or epochs < 1:
        yield ConfigError("trainer.max_epochs", f"{epochs} epochs", "give 1 or more: the schedule needs its length")
    elif every > epochs:
        what = f"{every} epochs between validations, but {epochs} in all"
        yield ConfigError("trainer.check_val_every_n_epoch", what, f"give 1 to {epochs}: the best checkpoint needs one")
    elif keep == "last" and epochs % every:
        what = f"{every} epochs between validations, so that the last of {epochs}, which is kept, has none"
        yield ConfigError("trainer.check_val_every_n_epoch", what, f"give a divisor of {epochs}, or keep=best")
    least = node.get("min_epochs")
    if least is not None and isinstance(epochs, int) and least > epochs:
        yield ConfigError("trainer.min_epochs", f"{least} epochs at least, but {epochs} at most", f"give 1 to {epochs}")


def _step_faults(node: Node) -> Iterator[ConfigError]:
    """How many batches and steps, and what is clipped."""
    for key in ("limit_train_batches", "limit_val_batches", "accumulate_grad_batches", "log_every_n_steps"):
        if node.get(key) is not None and node[key] <= 0:
            yield ConfigError(f"trainer.{key}", f"{node[key]} leaves nothing", "give null, or 1 and more")
    clip = node.get("gradient_clip_val")
    if clip is not None and clip < 0:
        yield ConfigError("trainer.gradient_clip_val", f"{clip} would turn gradients round", "use null for no clipping")
    if node.get("gradient_clip_algorithm") is not None and not clip:
        what = "nothing is clipped without trainer.gradient_clip_val"
        yield ConfigError("trainer.gradient_clip_algorithm", what, "give that, or remove it")


def _precision_faults(node: Node) -> Iterator[ConfigError]:
    precision = node.get("precision")
    if precision is not None and str(precision) not in allowlist.PRECISIONS:
        why = allowlist.NOT_PRECISIONS.get(str(precision), "is not known to work in a run")
        yield ConfigError("trainer.precision", f"{precision} {why}", "use auto, bf16-mixed, 16-mixed or 32-true")
        return
    try:
        resolve_precision(precision, resolve_accelerator(value_of(node, "accelerator")))
    except ConfigError as fault:
        yield fault
