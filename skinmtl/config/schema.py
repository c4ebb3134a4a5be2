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
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from skinmtl.config import allowlist, signatures
from skinmtl.errors import ConfigError

# A prefix of a name protects nothing (`torch.optim.x.torch.load` resolves), so a class is admitted by the module that
# defines it, and a function by its whole name.
HOMES = (
    "skinmtl",
    "torch.optim",
    "pytorch_lightning.trainer.trainer",
    "pytorch_lightning.callbacks",
)
ROOTS = (
    "skinmtl",
    "torch.optim",
    "pytorch_lightning",
)  # where a name has to begin for its module to be imported at all
FOREIGN = ("torch", "pytorch_lightning")
FUNCTIONS = (
    *(f"skinmtl.data.transforms.{name}" for name in ("none", "light", "strong")),
    *(
        f"skinmtl.data.samplers.{name}"
        for name in ("class_balanced", "sqrt_balanced", "effective_number", "class_aware")
    ),
)
ALLOW = "SKINMTL_ALLOW"  # names of a user's own packages, separated by commas; never read from a file
TRAINER = ("pytorch_lightning.trainer.trainer", "Trainer")
WORDS = {(*TRAINER, "precision"): "auto"}  # ours, beside what the hint admits


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor: whether it is a key of the config, and what it may be."""

    name: str
    is_key: bool
    is_needed: bool
    default: Any  # `signatures.UNREAD` where only an import would tell
    refusal: allowlist.Reason | None
    _word: str | None
    _least: float | None
    _hint: Callable[[], Any]

    def misfit(self, value: Any) -> str | None:
        """Say what the type hint has against a value of a config, as a phrase; None where it fits or is not known."""
        from pydantic import TypeAdapter, ValidationError

        if any(isinstance(part, dict) for part in _parts(value)):
            return None  # a node of its own, which is looked at by itself
        if any(isinstance(part, float) and not math.isfinite(part) for part in _parts(value)):
            return "it should be a finite number"
        hint = _plain(self._hint())
        if hint is None or (value is not None and value == self._word):
            return None
        try:
            TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            # Of a union the branch that came furthest is the one that was meant.
            faults = error.errors(include_url=False)
            depth = max(len(fault["loc"]) for fault in faults)
            said = dict.fromkeys(_phrase(fault["msg"]) for fault in faults if len(fault["loc"]) == depth)
            return "it should be " + " or ".join(sorted(said))  # typing keeps unions in the order first met
        if self._least is not None and isinstance(value, (int, float)) and value < self._least:
            return f"it should be greater than or equal to {self._least:g}"
        return None

    def meant(self, value: Any) -> Any:
        """Give the value with integers for whole numbers written as 8.0, where only 8 fits; else as it is."""
        whole = _whole(value)
        return whole if self.misfit(value) is not None and self.misfit(whole) is None else value


def find(target: object, where: str = "") -> Callable[..., Any]:
    """Find the class or function of an admitted name; the name is judged before anything is imported.

    Args:
        target: what a `_target_` says.
        where: the dotted key of its node.

    Raises:
        ConfigError: the name is not admitted, or does not exist.
    """
    key = f"{where}._target_".lstrip(".")
    name = _judged(target, key)
    module, _, name = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(key, f"{module} cannot be imported: {error}", "install what it needs") from None
        found = None
    if found is None:
        raise ConfigError(key, f"there is no {target!r}", "see conf/ for those that exist; is the package installed?")
    home = str(getattr(found, "__module__", ""))
    if inspect.isclass(found) and (reason := allowlist.refusal(home, found.__name__)) is not None:
        raise ConfigError(where or key, f"{found.__name__}: {reason[0]}", reason[1])
    own = own_packages()
    is_class = inspect.isclass(found) and _within(home, (*HOMES, *own))
    is_function = inspect.isfunction(found) and (f"{home}.{name}" in FUNCTIONS or _within(home, own))
    if not (is_class or is_function):
        raise _not_admitted(target, key)
    constructor: Callable[..., Any] = found
    return constructor


def outline(target: object, where: str = "") -> tuple[str, dict[str, Argument]] | None:
    """Read name and arguments of an admitted class or function from its source text; nothing is imported.

    Args:
        target: what a `_target_` says.
        where: the dotted key of its node.

    Returns:
        Its name, and its arguments by name; None where the text does not tell.

    Raises:
        ConfigError: as `find`, as far as the text shows.
    """
    key = f"{where}._target_".lstrip(".")
    found = signatures.find(_judged(target, key))
    if found is None:
        return None
    module, maker = found
    if (reason := allowlist.refusal(module.name, maker.name)) is not None:
        raise ConfigError(where or key, f"{maker.name}: {reason[0]}", reason[1])
    parameters = signatures.parameters(module, maker)
    if parameters is None:
        return None
    rows = [
        _argument(module.name, maker.name, p.name, p.keyword_only, not p.has_default, p.default, p.hint)
        for p in parameters
    ]
    return maker.name, {argument.name: argument for argument in rows}


def _judged(target: object, key: str) -> str:
    """Give the target where its name may be looked at further."""
    if not isinstance(target, str) or not (target in FUNCTIONS or _within(target, (*ROOTS, *own_packages()))):
        raise _not_admitted(target, key)
    return target


def _not_admitted(target: object, key: str) -> ConfigError:
    package, _, name = str(target).rpartition(".")
    if package.partition(".")[0] in ("", "lightning") and (
        name in allowlist.CALLBACKS or name in allowlist.NOT_CALLBACKS
    ):
        right = f"pytorch_lightning.callbacks.{name}"
        reason = allowlist.refusal(right, name) or (f"{target!r} is not installed by this name", f"write {right}")
        return ConfigError(key, f"{name}: {reason[0]}", reason[1])
    fix = f"use a class that trains, as in conf/, or admit a package of your own with {ALLOW}=<package>"
    return ConfigError(key, f"{target!r} is not an admitted constructor", fix)


def own_packages() -> tuple[str, ...]:
    """Give a user's own packages, as the environment variable SKINMTL_ALLOW admits them."""
    return tuple(name.strip() for name in os.environ.get(ALLOW, "").split(",") if name.strip())


def arguments(constructor: Callable[..., Any]) -> dict[str, Argument]:
    """Give a constructor's arguments by name; bases are asked where `**kwargs` passes on to them."""
    found: dict[str, Argument] = {}
    owner = getattr(constructor, "__name__", "")
    bases: list[Any] = list(constructor.__mro__[:-1]) if inspect.isclass(constructor) else []
    makers = [base.__init__ for base in bases] or [constructor]
    for maker in makers:
        parameters = inspect.signature(maker).parameters.values()
        scope = getattr(inspect.unwrap(maker), "__globals__", {})
        for p in parameters:
            if p.name == "self" or p.kind is p.VAR_POSITIONAL:
                continue
            if p.kind is p.VAR_KEYWORD:
                if p.annotation not in (p.empty, Any, "Any"):
                    hint = partial(_evaluated, p.annotation, scope)
                    found[signatures.ANY] = Argument(
                        signatures.ANY, True, False, signatures.UNREAD, None, None, None, hint
                    )
                continue
            keyword_only, is_needed = p.kind is p.KEYWORD_ONLY, p.default is p.empty
            hint = partial(_evaluated, p.annotation, scope)
            argument = _argument(constructor.__module__, owner, p.name, keyword_only, is_needed, p.default, hint)
            found.setdefault(p.name, argument)
        if signatures.ANY in found or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def is_given(constructor: Callable[..., Any], name: str) -> bool:
    """Tell whether a constructor asks the run for a part of this name."""
    known = arguments(constructor)
    return name in known and not known[name].is_key and known[name].refusal is None


def _argument(
    home: str, owner: str, name: str, keyword_only: bool, is_needed: bool, default: Any, hint: Callable[[], Any]
) -> Argument:
    is_given = name in allowlist.GIVEN if (home, owner) == TRAINER else keyword_only and not _within(home, FOREIGN)
    refusal = allowlist.argument_refusal(home, owner, name)
    is_key = not is_given and refusal is None
    word, least = WORDS.get((home, owner, name)), allowlist.LEAST.get((owner, name))
    return Argument(name, is_key, is_key and is_needed, default, refusal, word, least, hint)


def _evaluated(hint: Any, scope: Mapping[str, Any]) -> Any:
    """Evaluate a hint that may be a text; None where it names what its module does not know while it runs."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, dict(scope))  # noqa: S307 - written in an admitted constructor, not in a config
    except (NameError, TypeError, AttributeError):
        return None


def handed_in(constructor: Callable[..., Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Select those of a run's parts that a constructor asks for, behind `*` where it is ours."""
    return {name: part for name, part in parts.items() if is_given(constructor, name)}


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def _plain(hint: Any) -> Any:
    """Reduce a hint to None, numbers, words, choices and lists of these; None for what says nothing about YAML.

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
        return origin[tuple(part if part is Ellipsis else _plain(part) for part in inner)]
    return str if hint is Path else None


def _is_foreign(hint: Any) -> bool:
    """Tell whether a hint stands for objects that no scalar or list of YAML can be."""
    kind = get_origin(hint) or hint
    return inspect.isclass(kind) and not issubclass(kind, (enum.Enum, os.PathLike, list, tuple, dict, str))


def _phrase(message: str) -> str:
    for before in ("Input should be ", "Value should be "):
        message = message.removeprefix(before)
    if found := re.match(r"\w+ should have (at \w+ \d+ items?)", message):
        return f"a list of {found[1]}"
    message = message.replace("valid tuple", "valid list").replace("valid array", "valid list")
    return message[0].lower() + message[1:]


def _whole(value: Any) -> Any:
    """Give a value in which whole numbers are integers, however they are written."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parts(value: Any) -> Iterator[Any]:
    """Yield a value, what it holds, and so on."""
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(item)
