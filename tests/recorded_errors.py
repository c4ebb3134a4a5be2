"""Every one-line error that the package can say, as a list: `make errors` writes it to tests/errors.txt.

It is read from the source: where an answer to a user (`skinmtl.errors.SkinmtlError`) is made, its words stand beside.
What is known only when it happens is its expression in braces; words that depend on something are parted by ` | `.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "skinmtl"
RECORD = Path(__file__).parent / "errors.txt"
HEAD = """\
# Every error of one line that skinmtl can say, by module. Made by `make errors`: read what changes in it.
"""
ROOT = "SkinmtlError"
MAKERS = {"list_fault": ("InputError", (0, 1, 3))}  # functions that make one: of which class, from which arguments
PRINTED = "skinmtl: error: "
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.ExceptHandler, ast.Match, ast.match_case)
LEAVES = (ast.Raise, ast.Return, ast.Continue, ast.Break)
Place = tuple[tuple[ast.AST, str], ...]  # the blocks around a statement, and in which part of each it is


class Module:
    """A file of the package, its constants, and where each of its nodes stands."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.tree = name, ast.parse(text)
        self.above = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    @cached_property
    def constants(self) -> dict[str, ast.expr]:
        """What names of the module stand for."""
        return {
            target.id: node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    @cached_property
    def imported(self) -> dict[str, tuple[str, str]]:
        """Where names come from: module and name there."""
        return {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def function(self, node: ast.AST) -> ast.AST:
        """The function around a node, or the module."""
        while not isinstance(node, ast.FunctionDef | ast.Module):
            node = self.above[node]
        return node

    def place(self, node: ast.AST) -> Place:
        """The blocks around a node within its function."""
        found: list[tuple[ast.AST, str]] = []
        while not isinstance(node, ast.FunctionDef | ast.Module):
            up = self.above[node]
            if isinstance(up, BLOCKS):
                part = next(name for name, value in ast.iter_fields(up) if value is node or _holds(value, node))
                found.append((up, part))
            node = up
        return tuple(reversed(found))


def _holds(value: object, node: ast.AST) -> bool:
    return isinstance(value, list) and any(each is node for each in value)


class Package:
    """All modules, by their names."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.modules = {name: Module(name, text) for name, text in texts.items()}
        bases = {
            node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
            for module in self.modules.values()
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef)
        }
        self.classes = {ROOT}
        while more := {name for name, of in bases.items() if of & self.classes} - self.classes:
            self.classes |= more

    def errors(self) -> Iterator[tuple[str, str]]:
        """Module and line of each error, in no order."""
        for name, module in self.modules.items():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Call) and (said := self._said(module, node)):
                    yield name, said
                elif isinstance(node, ast.JoinedStr):
                    text = self.words(module, node, node)
                    if text.startswith(PRINTED) and ":" in text.removeprefix(PRINTED):  # else it prints one of these
                        yield name, f"print  {text.removeprefix(PRINTED)}"

    def _said(self, module: Module, call: ast.Call) -> str:
        """The line of an error that a call makes; empty for any other call."""
        kind = call.func.id if isinstance(call.func, ast.Name) else ""
        order: Sequence[int] = (0, 1, 2)
        if kind in MAKERS:
            kind, order = MAKERS[kind]
        elif kind not in self.classes:
            return ""
        by_name = {each.arg: each.value for each in call.keywords}
        places = zip(order, NAMES, strict=True)
        given = [call.args[at] if at < len(call.args) else by_name.get(name) for at, name in places]
        if any(each is None or isinstance(each, ast.Starred) for each in given):
            return ""  # several faults at once, which are made elsewhere
        where, what, fix = (self.words(module, each, call) for each in given if each is not None)
        return f"{kind}  {where}: {what}; fix: {fix}"

    def words(self, module: Module, node: ast.expr, call: ast.AST, within: frozenset[str] = frozenset()) -> str:
        """An expression as words: texts as they are, what is not known in braces."""

        def inner(each: ast.expr) -> str:
            return self.words(module, each, call, within)

        if isinstance(node, ast.FormattedValue) and not isinstance(node.value, ast.Name):
            return f"{{{ast.unparse(node.value)}}}"
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(map(inner, parts))
            case ast.BinOp(op=ast.Add()):
                return inner(node.left) + inner(node.right)
            case ast.IfExp() | ast.BoolOp(op=ast.Or()):
                return f"({' | '.join(map(inner, _either(node)))})"
            case ast.FormattedValue(value=value) | ast.Call(func=ast.Name(id="str"), args=[value]):
                return inner(value)
            case ast.Name():
                return self._known(module, node, call, within) or f"{{{node.id}}}"
        return f"{{{ast.unparse(node)}}}"

    def _known(self, module: Module, name: ast.Name, call: ast.AST, within: frozenset[str]) -> str:
        """The words that a name stands for where the call is; empty where they are not written beside it."""
        if name.id in within:  # it is made of its former self
            return ""
        within |= {name.id}
        values = list(_assigned(module, name.id, call))
        texts = dict.fromkeys(self.words(module, value, value, within) for value in values)
        if values and all(_is_words(each) or self._stands_for_words(module, each, within) for each in values):
            return f"({' | '.join(texts)})" if len(texts) > 1 else next(iter(texts))
        if values or name.id in _arguments(module.function(call)):
            return ""
        home, called = module.imported.get(name.id, (module.name, name.id))
        value = self.modules[home].constants.get(called) if home in self.modules else None
        if value is None or not _is_words(value):
            return ""
        return self.words(self.modules[home], value, value, within)

    def _stands_for_words(self, module: Module, node: ast.expr, within: frozenset[str]) -> bool:
        return isinstance(node, ast.Name) and bool(self._known(module, node, node, within))


NAMES = ("where", "what", "fix")


def _is_words(node: ast.expr | None) -> bool:
    """Whether an expression is a text, or may be."""
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.BinOp(op=ast.Add()):
            return _is_words(node.left) or _is_words(node.right)
        case ast.IfExp() | ast.BoolOp(op=ast.Or()):
            return any(map(_is_words, _either(node)))
    return False


def _either(node: ast.IfExp | ast.BoolOp) -> list[ast.expr]:
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values


def _arguments(function: ast.AST) -> set[str]:
    if not isinstance(function, ast.FunctionDef):
        return set()
    return {each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}


def _assigned(module: Module, name: str, call: ast.AST) -> Iterator[ast.expr]:
    """The values that a name may have where a call is: the last that is sure, and those that may replace it."""
    here, found = module.place(call), []
    for node in ast.walk(module.function(call)):
        if isinstance(node, ast.FunctionDef) or module.function(node) is not module.function(call):
            continue
        line = getattr(node, "lineno", 0)
        if line > getattr(call, "lineno", 0):
            continue
        found += [(line, node, value) for value in _values(node, name)]
    sure: list[ast.expr] = []
    for _, node, value in sorted(found, key=lambda one: one[0]):
        place = module.place(node)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(place, here, strict=False)))
        if len(place) > common and (_leaves(place[common]) or _other_arm(place, here, common)):
            continue
        sure = [value] if len(place) == common else [*sure, value]
    yield from sure


def _other_arm(place: Place, here: Place, common: int) -> bool:
    """Whether two places are in different arms of one block, so that only one of them is ever come by."""
    return len(here) > common and place[common][0] is here[common][0]


def _leaves(block: tuple[ast.AST, str]) -> bool:
    """Whether an arm of a block ends with leaving the function or the loop."""
    body = getattr(block[0], block[1])
    return isinstance(body, list) and bool(body) and isinstance(body[-1], LEAVES)


def _values(node: ast.AST, name: str) -> Iterator[ast.expr]:
    """What a statement gives a name."""
    match node:
        case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
            yield value
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            pairs = zip(targets, values, strict=False)
            yield from (value for target, value in pairs if isinstance(target, ast.Name) and target.id == name)
        case ast.Assign(targets=targets, value=value):
            inside = [each for target in targets for each in ast.walk(target)]
            yield from (value for each in inside if isinstance(each, ast.Name) and each.id == name)
        case ast.AugAssign(target=ast.Name(id=found), value=value) if found == name:
            yield ast.BinOp(ast.Constant("... "), ast.Add(), value)
        case ast.For(target=target, iter=value):
            inside = list(ast.walk(target))
            yield from (value for each in inside if isinstance(each, ast.Name) and each.id == name)


def record(package: Path = PACKAGE) -> str:
    """The list of all errors of a package, by module and in order of their words."""
    files = sorted(package.rglob("*.py"))
    names = {file: ".".join(file.relative_to(package.parent).with_suffix("").parts) for file in files}
    found = set(Package({names[file]: file.read_text(encoding="utf-8") for file in files}).errors())
    lines = [HEAD]
    for module in sorted({module for module, _ in found}):
        lines += [f"\n{module}\n", *sorted(f"  {text}\n" for name, text in found if name == module)]
    return "".join(lines)


if __name__ == "__main__":
    RECORD.write_text(record(), encoding="utf-8")
