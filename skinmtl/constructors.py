"""What a config may build: which names are admitted, which arguments they take, which values fit.

The typed constructor is the schema. An argument of one of our constructors is a key when it can be given by position;
what stands behind `*` is handed in by the run.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import math
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from skinmtl.errors import ConfigError

# A prefix of a name protects nothing (`torch.optim.x.torch.load` resolves), so a class is admitted by the module that
# defines it, and a function by its whole name.
HOMES = (
    "skinmtl",
    "torch.optim",
    "pytorch_lightning.trainer.trainer",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.loggers",
)
ROOTS = (
    "skinmtl",
    "torch.optim",
    "pytorch_lightning",
)  # where a name has to begin for its module to be imported at all
FUNCTIONS = (
    *(f"skinmtl.data.transforms.{name}" for name in ("none", "light", "strong")),
    *(
        f"skinmtl.data.samplers.{name}"
        for name in ("class_balanced", "sqrt_balanced", "effective_number", "class_aware")
    ),
)
ALLOW = "SKINMTL_ALLOW"  # names of a user's own packages, separated by commas; never read from a file
TRAINER = "pytorch_lightning.trainer.trainer.Trainer"
# What a run hands to constructors that are not ours. `max_time` would stop within an epoch, `max_steps` before the
# schedule's end.
GIVEN = {
    TRAINER: {
        *("callbacks", "logger", "plugins", "use_distributed_sampler", "num_sanity_val_steps"),
        *("enable_model_summary", "default_root_dir", "enable_checkpointing", "max_time", "max_steps"),
        *("enable_progress_bar", "fast_dev_run", "overfit_batches", "val_check_interval", "barebones"),
    }
}
WORDS = {(TRAINER, "precision"): "auto"}  # ours, beside what the hint admits


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor: whether it is a key of the config, and what it may be."""

    name: str
    is_key: bool
    is_needed: bool
    default: Any
    word: str | None
    _annotation: Any
    _scope: Mapping[str, Any]

    def misfit(self, value: Any) -> str | None:
        """What the type hint has against a value of a config, as a phrase; None where it fits or nothing is known."""
        from pydantic import TypeAdapter, ValidationError

        if any(isinstance(part, dict) for part in _parts(value)):
            return None  # a node of its own, which is looked at by itself
        if any(isinstance(part, float) and not math.isfinite(part) for part in _parts(value)):
            return "it should be a finite number"
        hint = self._hint()
        if hint is None or (value is not None and value == self.word):
            return None
        try:
            TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            # Of a union the branch that came furthest is the one that was meant.
            faults = error.errors(include_url=False)
            depth = max(len(fault["loc"]) for fault in faults)
            said = dict.fromkeys(_phrase(fault["msg"]) for fault in faults if len(fault["loc"]) == depth)
            return "it should be " + " or ".join(said)
        return None

    def _hint(self) -> Any:
        """The hint as far as a value of YAML can be held against it, else None."""
        hint = self._annotation
        if isinstance(hint, str):
            try:
                hint = eval(hint, dict(self._scope))  # noqa: S307 - written in an admitted constructor, not in a config
            except (NameError, TypeError, AttributeError):
                return None
        return _plain(hint)


def find(target: object, where: str = "") -> Callable[..., Any]:
    """The class or function of an admitted name; the name is judged before anything is imported.

    Raises:
        ConfigError: at the key `where`, for a name that is not admitted or that does not exist.
    """
    key = f"{where}._target_".lstrip(".")
    own = own_packages()
    refusal = ConfigError(
        key,
        f"{target!r} is not an admitted constructor",
        f"use a class that trains, as in conf/, or admit a package of your own with {ALLOW}=<package>",
    )
    if not isinstance(target, str) or not (target in FUNCTIONS or _within(target, (*ROOTS, *own))):
        raise refusal
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(key, f"{module} cannot be imported: {error}", "install what it needs") from None
        found = None
    if found is None:
        raise ConfigError(key, f"there is no {target!r}", "see conf/ for those that exist; is the package installed?")
    home = str(getattr(found, "__module__", ""))
    is_class = inspect.isclass(found) and _within(home, (*HOMES, *own))
    is_function = inspect.isfunction(found) and (f"{home}.{name}" in FUNCTIONS or _within(home, own))
    if not (is_class or is_function):
        raise refusal
    constructor: Callable[..., Any] = found
    return constructor


def own_packages() -> tuple[str, ...]:
    """A user's own packages, as the environment admits them."""
    return tuple(name.strip() for name in os.environ.get(ALLOW, "").split(",") if name.strip())


def arguments(constructor: Callable[..., Any]) -> dict[str, Argument]:
    """Arguments by name; bases are asked where `**kwargs` passes on to them."""
    found: dict[str, Argument] = {}
    name = f"{constructor.__module__}.{getattr(constructor, '__name__', '')}"
    ours = not _within(constructor.__module__, ("torch", "pytorch_lightning"))
    bases: list[Any] = list(constructor.__mro__[:-1]) if inspect.isclass(constructor) else []
    makers = [base.__init__ for base in bases] or [constructor]
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        scope = getattr(inspect.unwrap(maker), "__globals__", {})
        for parameter in parameters:
            if parameter.name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            is_key = parameter.name not in GIVEN.get(name, ()) and not (
                ours and parameter.kind is parameter.KEYWORD_ONLY
            )
            is_needed = is_key and parameter.default is parameter.empty
            word = WORDS.get((name, parameter.name))
            argument = Argument(parameter.name, is_key, is_needed, parameter.default, word, parameter.annotation, scope)
            found.setdefault(parameter.name, argument)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def is_given(constructor: Callable[..., Any], name: str) -> bool:
    """Whether a constructor asks the run for a part of this name."""
    known = arguments(constructor)
    return name in known and not known[name].is_key


def handed_in(constructor: Callable[..., Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's parts that a constructor asks for, behind `*` where it is ours."""
    return {name: part for name, part in parts.items() if is_given(constructor, name)}


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def _plain(hint: Any) -> Any:
    """A hint made of None, numbers, words, choices and lists of these; None for what says nothing about YAML.

    A class can only be met by a node of its own, so in a union it is left out.
    """
    if hint in (None, types.NoneType, bool, int, float, str) or get_origin(hint) is Literal:
        return hint
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return hint if _plain(inner[0]) is not None else None
    if origin in (Union, types.UnionType):
        kept = [part for part in inner if part is types.NoneType or _plain(part) is not None]
        if not kept or not all(part in kept or _is_foreign(part) for part in inner):
            return None
        return Union[tuple(_plain(part) for part in kept)]  # noqa: UP007 - from a list
    if origin in (list, tuple, dict, Sequence) and all(part is Ellipsis or _plain(part) is not None for part in inner):
        return hint
    return str if hint is Path else None


def _is_foreign(hint: Any) -> bool:
    """Whether a hint stands for objects that no scalar or list of YAML can be."""
    kind = get_origin(hint) or hint
    return inspect.isclass(kind) and not issubclass(kind, (enum.Enum, os.PathLike, list, tuple, dict, str))


def _phrase(message: str) -> str:
    for before in ("Input should be ", "Value should be "):
        message = message.removeprefix(before)
    if found := re.match(r"\w+ should have (at \w+ \d+ items?)", message):
        return f"a list of {found[1]}"
    message = message.replace("valid tuple", "valid list").replace("valid array", "valid list")
    return message[0].lower() + message[1:]


def _parts(value: Any) -> Iterator[Any]:
    """A value, what it holds, and so on."""
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(item)
