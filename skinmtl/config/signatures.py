"""What a class or function takes, read from its source text: nothing is imported, nothing is run.

To import torch and Lightning takes seconds; a misspelt key is told before that.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# Modules of which hints are made; they are cheap to import, and calling what is in the last makes a bound.
HINTS = ("typing", "collections.abc", "pathlib", "annotated_types")
Maker = ast.FunctionDef | ast.ClassDef


UNREAD = object()  # a default that only an import would tell
ANY = "**"  # the name of the parameter that takes keys of every name, where `**` has a hint that says what they may be


@dataclass(frozen=True)
class Module:
    """A module's source text, parsed."""

    name: str
    is_package: bool
    tree: ast.Module


@dataclass(frozen=True)
class Parameter:
    """One parameter as it is written."""

    name: str
    keyword_only: bool
    has_default: bool
    default: Any  # UNREAD where it is no plain value
    annotation: str | None
    module: Module

    def hint(self) -> Any:
        """Evaluate the type hint; None where there is none, or it holds what only an import would tell."""
        if self.annotation is None:
            return None
        try:
            return Scope(self.module).evaluate(self.annotation)
        except (NameError, TypeError, AttributeError):
            return None


def find(name: str) -> tuple[Module, Maker] | None:
    """Find the class or function of a dotted name where it is defined, through all imports; None if not seen."""
    found = _binding(name, 0)
    return found if found is not None and isinstance(found[1], Maker) else None  # type: ignore[return-value]


def parameters(module: Module, maker: Maker) -> list[Parameter] | None:
    """Read the parameters of a function or of a class's `__init__`; bases are asked where `**kwargs` passes on to them.

    Returns:
        None where the text does not say: a base that cannot be found, a decorator of a class that may write `__init__`.
    """
    if isinstance(maker, ast.FunctionDef):
        return list(_of(module, maker))
    found: dict[str, Parameter] = {}
    for home, kind in bases_first(module, maker):
        if kind is None or (kind.decorator_list and not _plainly_decorated(kind)):
            return None
        init = next((item for item in kind.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
        if init is None:
            continue
        for parameter in list(_of(home, init))[1:]:
            found.setdefault(parameter.name, parameter)
        if init.args.kwarg is None or ANY in found:
            break
    return list(found.values())


def _of(module: Module, function: ast.FunctionDef) -> Iterator[Parameter]:
    given = function.args
    by_place = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(by_place) - len(given.defaults)), *given.defaults, *given.kw_defaults]
    for i, (argument, default) in enumerate(zip([*by_place, *given.kwonlyargs], defaults, strict=True)):
        hint = ast.unparse(argument.annotation) if argument.annotation is not None else None
        keyword_only = i >= len(by_place)
        yield Parameter(argument.arg, keyword_only, default is not None, _literal(default), hint, module)
    if (
        (rest := given.kwarg) is not None
        and rest.annotation is not None
        and (hint := ast.unparse(rest.annotation)) != "Any"
    ):
        yield Parameter(ANY, False, True, UNREAD, hint, module)


def _literal(node: ast.expr | None) -> Any:
    try:
        return UNREAD if node is None else ast.literal_eval(node)
    except ValueError:
        return UNREAD


def bases_first(module: Module, kind: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef | None]]:
    """Yield a class and its bases, the nearest first; None for one that is not found."""
    yield module, kind
    for base in kind.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if name in ("object", "Generic", "Protocol", "ABC", "nn.Module"):  # which take nothing of a name
            continue
        found = _in_module(module, name, 0)
        # A class may have the name of its base, which is then not the one that the module ends with.
        if found is None or not isinstance(found[1], ast.ClassDef) or found[1] is kind:
            yield module, None
        else:
            yield from bases_first(found[0], found[1])


def _plainly_decorated(kind: ast.ClassDef) -> bool:
    return all(
        ast.unparse(decorator).rpartition(".")[2] in ("final", "runtime_checkable") for decorator in kind.decorator_list
    )


class Scope(dict[str, Any]):
    """The names of a module as far as hints are made of them; a class stands for itself by an empty one."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self._module = module

    def evaluate(self, hint: str) -> Any:
        """Evaluate the hint that a text stands for.

        Raises:
            NameError: it holds what cannot be known without importing it.
        """
        tree = ast.parse(hint, mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and not getattr(self.known(node.func), "__module__", "") == "annotated_types":
                raise NameError(hint)
            if isinstance(node, (ast.Lambda, ast.ListComp, ast.Await, ast.Attribute)):
                raise NameError(hint)
        return eval(compile(tree, "<hint>", "eval"), {"__builtins__": {}}, self)  # noqa: S307 - names and bounds alone

    def known(self, node: ast.expr) -> Any:
        """Give what a bare name stands for; None for anything else."""
        return self[node.id] if isinstance(node, ast.Name) else None

    def __missing__(self, name: str) -> Any:
        self[name] = value = self._look(name)
        return value

    def _look(self, name: str) -> Any:
        found = _in_module(self._module, name, 0)
        if found is None:
            if name in ("int", "float", "str", "bool", "list", "tuple", "dict", "set"):
                return getattr(builtins, name)
            raise NameError(name)
        module, node = found
        if isinstance(node, ast.Assign):
            return Scope(module).evaluate(ast.unparse(node.value))
        if isinstance(node, ast.ImportFrom):
            return getattr(importlib.import_module(str(node.module)), node.names[0].name)
        # What a scalar of YAML may stand for has to be known, so a class has no bases but the plainest.
        if isinstance(node, ast.ClassDef) and not any(
            "Enum" in ast.unparse(b) or ast.unparse(b) == "str" for b in node.bases
        ):
            return type(name, (), {})
        raise NameError(name)


def _module(name: str) -> Module | None:
    """Parse a module by its dotted name; of a package only the outermost is asked of Python, which imports nothing."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    for place in spec.submodule_search_locations or ():
        base = Path(place, *rest)
        for file in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if (file.name == "__init__.py" or rest) and file.is_file():
                return _parsed(name, file.name == "__init__.py", file.read_bytes())
    if not rest and spec.origin is not None and spec.origin.endswith(".py"):
        return _parsed(name, False, Path(spec.origin).read_bytes())
    return None


@lru_cache(maxsize=200)
def _parsed(name: str, is_package: bool, text: bytes) -> Module | None:
    try:
        return Module(name, is_package, ast.parse(text))
    except (SyntaxError, ValueError):
        return None


def _binding(dotted: str, depth: int) -> tuple[Module, ast.AST] | None:
    home, _, name = dotted.rpartition(".")
    module = _module(home) if home else None
    return None if module is None else _in_module(module, name, depth)


def _in_module(module: Module, name: str, depth: int) -> tuple[Module, ast.AST] | None:
    """Find where a module's name is defined: a class, a function, an assignment, or an import from a home of hints."""
    if depth > 20:  # names that import each other
        return None
    for node in reversed(list(_statements(module.tree.body))):
        if isinstance(node, Maker) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return _in_module(module, node.value.id, depth + 1) if isinstance(node.value, ast.Name) else (module, node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) != name:
                    continue
                home = _absolute(module, node)
                if home in HINTS:
                    return module, ast.ImportFrom(module=home, names=[alias], level=0)
                return _binding(f"{home}.{alias.name}", depth + 1)
    return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those below an `if` or a `try` too."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements([*node.body, *node.orelse])


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    base = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*base, *([node.module] if node.module else [])])
