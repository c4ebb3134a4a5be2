"""The check of every config, and the only place where anything is built from one.

Plain YAML with `_target_`; the typed constructor is the schema. An argument of one of our constructors is a key when it
can be given by position; what stands behind `*` is handed in by the run.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from skinmtl.errors import ConfigError, Faults

# A prefix of a name protects nothing (`torch.optim.x.torch.load` resolves), so a class is admitted by the module that
# defines it, and a function by its whole name.
MODULES = ("skinmtl", "torch.optim", "pytorch_lightning.trainer.trainer", "pytorch_lightning.callbacks")
FUNCTIONS = tuple(f"skinmtl.data.transforms.{name}" for name in ("none", "light", "strong"))
ALLOW = "SKINMTL_ALLOW"  # names of a user's own packages, separated by commas; never read from a file
SPECIAL = {"_target_", "_partial_"}
WORDS = {("pytorch_lightning.trainer.trainer.Trainer", "precision"): "auto"}  # ours, beside what the hint admits

Node = Mapping[str, Any]


def build(node: Mapping[str, Any], **parts: Any) -> Any:
    """The object of a checked node; `parts` are what the run hands in, as far as the constructor asks for them."""
    from hydra.utils import instantiate

    constructor = _constructor(str(node["_target_"]))
    names = {name for name, (_, given) in _arguments(constructor).items() if given or not _ours(constructor)}
    return instantiate(node, **{name: part for name, part in parts.items() if name in names}, _convert_="all")


def check(cfg: DictConfig, run: Callable[..., Any]) -> None:
    """Look at a whole config before anything is built.

    Args:
        cfg: a composed or a saved config.
        run: the function that takes the top-level keys, `skinmtl.train.run`.

    Raises:
        Faults: every fault found, each with its dotted key.
    """
    try:
        tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key or "config"), str(error.msg).splitlines()[0], "give it a value") from None
    assert isinstance(tree, dict)
    faults = list(_arguments_faults(tree, run, ""))
    for key, node in tree.items():
        faults += _walk(node, str(key))
    faults = faults or list(_across(tree)) or list(_dry(tree))
    if faults:
        raise Faults(faults)


def resolve_precision(precision: Any, accelerator: str) -> Any:
    """The precision that `auto` stands for: bf16 where the hardware has it, else float32; any other value as it is.

    Raises:
        ConfigError: float16 where training would run on a CPU, on which it would silently be bf16.
    """
    import torch

    gpu = accelerator != "cpu" and torch.cuda.is_available()
    if precision == "auto":
        has = torch.cuda.is_bf16_supported() if gpu else _cpu_has_bf16()
        return "bf16-mixed" if has else "32-true"
    if not gpu and str(precision) in ("16", "16-mixed", "16-true"):
        raise ConfigError("trainer.precision", f"{precision} needs a GPU", "use auto, bf16-mixed or 32-true")
    return precision


def _cpu_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any(flag in file.read() for flag in ("avx512_bf16", "amx_bf16"))
    except OSError:
        return False


def _walk(node: Any, where: str) -> Iterator[ConfigError]:
    """Faults of every `_target_` at or below a node."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield from _walk(item, f"{where}[{i}]")
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        try:
            constructor = _constructor(str(node["_target_"]), where)
        except ConfigError as fault:
            yield fault
            return
        yield from _arguments_faults(node, constructor, where)
    for key, item in node.items():
        yield from _walk(item, f"{where}.{key}")


def _constructor(target: str, where: str = "") -> Callable[..., Any]:
    """The class or function of an admitted name; the name is judged before anything is imported."""
    key = f"{where}._target_".lstrip(".")
    own = tuple(name for name in os.environ.get(ALLOW, "").split(",") if name)
    module, _, name = target.rpartition(".")
    if not (target in FUNCTIONS or any(f"{target}.".startswith(f"{root}.") for root in (*_roots(), *own))):
        fix = f"use a class of {', '.join(_roots())}, or admit your own package with {ALLOW}=<package>"
        raise ConfigError(key, f"{target!r} is not an admitted constructor", fix)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        found = None
    if found is None:
        raise ConfigError(key, f"there is no {target!r}", "see conf/ for those that exist")
    home = str(getattr(found, "__module__", ""))
    admitted = inspect.isclass(found) and any(f"{home}.".startswith(f"{root}.") for root in (*MODULES, *own))
    mine = any(f"{home}.".startswith(f"{root}.") for root in own)
    if not (admitted or mine or f"{home}.{name}" in FUNCTIONS) or not callable(found):
        raise ConfigError(key, f"{target!r} is not an admitted constructor", "use a class that trains, see conf/")
    constructor: Callable[..., Any] = found
    return constructor


def _roots() -> tuple[str, ...]:
    return (*MODULES[:2], "pytorch_lightning")


def _ours(constructor: Callable[..., Any]) -> bool:
    """Whether arguments behind `*` are handed in by the run: ours, and a user's own."""
    return not constructor.__module__.startswith(("torch.", "pytorch_lightning."))


def _arguments(constructor: Callable[..., Any]) -> dict[str, tuple[inspect.Parameter, bool]]:
    """Arguments by name, each with whether it stands behind `*`; bases are asked where `**kwargs` passes on to them."""
    found: dict[str, tuple[inspect.Parameter, bool]] = {}
    makers = [c.__init__ for c in constructor.__mro__[:-1]] if inspect.isclass(constructor) else [constructor]
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        for parameter in parameters:
            if parameter.name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, (parameter, parameter.kind is parameter.KEYWORD_ONLY))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _arguments_faults(node: Node, constructor: Callable[..., Any], where: str) -> Iterator[ConfigError]:
    """Unknown, missing and unfit arguments of one call."""
    arguments, ours = _arguments(constructor), _ours(constructor)
    name = getattr(constructor, "__name__", str(constructor)) if where else "the config"
    keys = {key for key, (_, given) in arguments.items() if not (given and ours)}
    for key, value in node.items():
        dotted = f"{where}.{key}".lstrip(".")
        if key in SPECIAL and where:
            if key == "_partial_" and where != "optim":
                yield ConfigError(dotted, "only an optimiser is built in two steps", "remove it")
        elif key not in arguments:
            near = difflib.get_close_matches(str(key), keys, 1)
            guess = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(keys))}"
            yield ConfigError(dotted, f"{name} has no such argument", guess)
        elif key not in keys:
            yield ConfigError(dotted, f"{name} is given this by the run", "remove it")
        else:
            yield from _value_faults(value, arguments[key][0], constructor, dotted)
    if not node.get("_partial_"):
        for key in sorted(keys - set(node)):
            if arguments[key][0].default is inspect.Parameter.empty:
                yield ConfigError(f"{where}.{key}".lstrip("."), f"{name} needs it", "give it a value")


def _value_faults(
    value: Any, parameter: inspect.Parameter, constructor: Callable[..., Any], where: str
) -> Iterator[ConfigError]:
    from pydantic import TypeAdapter, ValidationError

    word = WORDS.get((f"{constructor.__module__}.{constructor.__name__}", parameter.name))
    hint = _hint(parameter, constructor)
    if isinstance(value, dict) or hint is None or (word is not None and value == word):
        return
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        said = "; ".join(dict.fromkeys(str(part["msg"]) for part in error.errors()))
        yield ConfigError(where, f"{value!r} does not fit", said[0].lower() + said[1:])


def _hint(parameter: inspect.Parameter, constructor: Callable[..., Any]) -> Any:
    """The type hint of an argument as far as a value of YAML can be held against it, else None."""
    hint = parameter.annotation
    if isinstance(hint, str):
        maker = constructor.__init__ if inspect.isclass(constructor) else constructor  # type: ignore[misc]
        scope = getattr(inspect.unwrap(maker), "__globals__", {})
        try:
            hint = eval(hint, scope)  # noqa: S307 - an annotation of an admitted constructor, not of a config
        except (NameError, TypeError, AttributeError):
            return None
    return hint if _plain(hint) else None


def _plain(hint: Any) -> bool:
    """Whether a hint is made of None, numbers, words, choices and sequences or dicts of these."""
    if hint in (None, types.NoneType, bool, int, float, str):
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return True
    if origin is Annotated:
        return _plain(inner[0])
    if origin in (Union, types.UnionType, list, tuple, dict, Sequence):
        return all(_plain(part) or part is Ellipsis for part in inner)
    return False


def _across(tree: Node) -> Iterator[ConfigError]:
    """What no single constructor can see."""
    tasks = tree["tasks"]
    if not tasks or len(set(tasks)) < len(tasks) or not set(tasks) <= {"seg", "cls"}:
        yield ConfigError("tasks", f"{tasks} is not a choice of tasks", "use [seg, cls], [seg] or [cls]")
        return
    for task, node in tree["loss"].items():
        if task not in ("seg", "cls"):
            yield ConfigError(f"loss.{task}", "there is no such task", "use loss.seg or loss.cls")
        elif node is not None and task not in tasks:
            fix = f"add {task} to tasks, or take loss/{task}=none"
            yield ConfigError(f"loss.{task}", f"a loss, but tasks are {tasks}", fix)
    for task in tasks:
        if tree["loss"].get(task) is None:
            yield ConfigError(f"loss.{task}", "the task has no loss", f"choose one with loss/{task}=")
    data = tree["data"]
    if isinstance(data, dict) and data.get("split") is None and data.get("fold", 0) >= data.get("folds", 5):
        yield ConfigError("data.fold", f"{data['fold']} of {data['folds']} folds", "folds are counted from 0")
    trainer = tree["trainer"]
    try:
        resolve_precision(trainer.get("precision"), trainer.get("accelerator", "auto"))
    except ConfigError as fault:
        yield fault


def _dry(tree: Node) -> Iterator[ConfigError]:
    """Build what costs nothing, for what only the constructors themselves know to refuse."""
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    try:
        optimizer = build(OmegaConf.create(tree["optim"]))([parameter])
    except (ValueError, RuntimeError, TypeError) as error:
        yield ConfigError("optim", str(error), "see the optimiser's own documentation")
        return
    try:
        build(OmegaConf.create(tree["schedule"])).on(optimizer, 10, 5)
    except (ValueError, TypeError) as error:
        yield ConfigError("schedule", str(error), "see conf/schedule")
    node = dict(tree["trainer"])
    node["precision"] = resolve_precision(node.get("precision"), node.get("accelerator", "auto"))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    try:
        build(OmegaConf.create(node | quiet))
    except Exception as error:  # Lightning answers with exceptions of many kinds, all of them about these values
        yield ConfigError("trainer", str(error).splitlines()[0], "see the arguments of pytorch_lightning.Trainer")
