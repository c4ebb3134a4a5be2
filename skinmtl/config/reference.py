"""Every group, option and key of the config: its default, what it may be, and what it means.

Read from conf/ with its comments and from the source texts of what conf/ names, so nothing is imported or built. The
help of `python train.py` and the reference of the documentation are made of it, and nothing is written twice: a key
means what the comment behind it in conf/ says, else what its constructor's docstring says under Args.
"""

from __future__ import annotations

import ast
import inspect
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from skinmtl.config import signatures
from skinmtl.config.schema import outline

OWN = "skinmtl."
NEEDED = "needed"  # in place of a default
AS = "as in "  # begins the meaning of a key that is another library's, whose name follows
PLAIN: Mapping[Any, str] = {
    **{bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"},
    **{None: "null", types.NoneType: "null"},
}
COLLECTIONS: Mapping[Any, str] = {list: "list", tuple: "list", Sequence: "list", dict: "mapping", Mapping: "mapping"}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}

Place = tuple[str, ...]  # a key by the nodes that it lies in


@dataclass(frozen=True)
class Key:
    """One key: its dotted name as on the command line, its default as YAML, what it may be, and what it means."""

    name: str
    default: str
    kind: str
    meaning: str
    is_given: bool = True  # by the file; else only its constructor knows it, and `+name=` adds it

    @property
    def is_foreign(self) -> bool:
        """Whether only another library says what it means."""
        return self.meaning.startswith(AS)


@dataclass(frozen=True)
class Option:
    """One file of a group.

    Args:
        target: the dotted name of what it builds; empty where it builds nothing.
        headline: the first sentence of its header; `notes` are the other lines.
        keys: those of what it builds, each with the value that it has under this option.
        sets: keys of other groups, or of another option that this one begins with, and the values it gives them.
    """

    name: str
    target: str
    headline: str
    notes: tuple[str, ...]
    keys: tuple[Key, ...]
    sets: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Group:
    """A folder of conf/: `augment=light` takes the option `light` of the group `augment`."""

    name: str
    meaning: str
    default: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Entry:
    """A leaf of a YAML file: where it stands, how it is written, and the comment beside or above it."""

    path: Place
    value: str
    comment: str

    @property
    def is_special(self) -> bool:
        """Whether Hydra reads it and no constructor."""
        return self.path[0] == "defaults" or self.path[-1].startswith("_")


@dataclass(frozen=True)
class File:
    """A YAML file of conf/ as it is written."""

    package: str | None  # what `# @package` says
    header: tuple[str, ...]
    bases: tuple[str, ...]  # options of its own group that it begins with
    chosen: tuple[tuple[str, str], ...]  # options of other groups that it takes
    entries: tuple[Entry, ...]


def groups(conf: Path) -> list[Group]:
    """Every group of conf/, in the order of its default config."""
    chosen = [entry for entry in read(conf / "config.yaml").entries if entry.path[0] == "defaults"]
    found = []
    for entry in chosen:
        name = entry.path[-1]
        if name != "_self_" and (conf / name).is_dir():
            files = sorted((conf / name).glob("*.yaml"))
            options = tuple(_option(conf, name, file.stem) for file in files)
            found.append(Group(name, entry.comment, "" if entry.value in ("null", "[]") else entry.value, options))
    return found


def run_keys(conf: Path) -> list[Key]:
    """The keys that stand in config.yaml itself."""
    leaves = [entry for entry in read(conf / "config.yaml").entries if entry.path[0] != "defaults"]
    return [Key(".".join(entry.path), entry.value, "", entry.comment) for entry in leaves]


def default_keys(conf: Path) -> list[Key]:
    """The keys of the default config that mean something here: its own, and those of each group's default option."""
    keys = [key for key in run_keys(conf) if not key.name.startswith("hydra.")]
    for group in groups(conf):
        keys += [key for option in group.options if option.name == group.default for key in option.keys]
    return [key for key in keys if key.is_given and not key.is_foreign]


def undocumented(conf: Path) -> list[str]:
    """What has no meaning, and what a file sets that no constructor nor other file knows; empty where all is said."""
    said = groups(conf)
    options = [(group, option) for group in said for option in group.options]
    keys = [*run_keys(conf), *(key for _, option in options for key in option.keys)]
    known = {above for key in keys for above in _with_above(key.name)} | {group.name for group in said}
    found = [f"{group.name}=" for group in said if not group.meaning]
    found += [f"{group.name}={option.name}" for group, option in options if not option.headline]
    found += [key.name for key in keys if not key.meaning]
    for group, option in options:
        strange = [name for name, _ in option.sets if name not in known and not name.startswith("hydra.")]
        found += [f"{group.name}={option.name}: {name}" for name in strange]
    return list(dict.fromkeys(found))


def _with_above(name: str) -> Iterator[str]:
    """A dotted name and the nodes that it lies in."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


# --- one option -------------------------------------------------------------------------------------------------------


def _option(conf: Path, group: str, name: str) -> Option:
    file = read(conf / group / f"{name}.yaml")
    headline, *notes = file.header or ("",)
    is_global = file.package == "_global_"
    prefix = () if is_global else tuple((file.package or group.replace("/", ".")).split("."))
    merged = _merged(conf, group, name)
    targets = {path[:-1]: entry.value for path, entry in merged.items() if path[-1] == "_target_"}
    leaves = [entry for entry in merged.values() if not entry.is_special]
    # A file of differences has keys of its own only where it says what is built of them.
    keys = [_key(prefix, entry, targets) for entry in leaves if not is_global or entry.path[:-1] in targets]
    for place, target in targets.items():
        given = {path[len(place)] for path in merged if path[: len(place)] == place}
        keys += [
            replace(key, name=_dotted(prefix, (*place, key.name)), is_given=False)
            for key in parameters(target).values()
            if key.name not in given
        ]
    changes = list(file.chosen) if is_global else []
    if is_global or file.bases:
        own = {key.name for key in keys} if is_global else set()
        entries = (entry for entry in file.entries if not entry.is_special)
        changes += [(where, e.value) for e in entries if (where := _dotted(prefix, e.path)) not in own]
    return Option(name, targets.get((), ""), headline, tuple(notes), tuple(keys), tuple(changes))


def _merged(conf: Path, group: str, name: str) -> dict[Place, Entry]:
    """Entries of an option over those of the options that it begins with, whose comments stay where it has none."""
    file = read(conf / group / f"{name}.yaml")
    found: dict[Place, Entry] = {}
    for base in file.bases:
        found |= _merged(conf, group, base)
    for entry in file.entries:
        if entry.path[0] == "defaults":
            continue
        before = found.get(entry.path)
        # A value takes the place of what was below it or above it: a name of an encoder that of a whole node.
        found = {path: kept for path, kept in found.items() if not _overlap(path, entry.path)}
        found[entry.path] = replace(entry, comment=entry.comment or (before.comment if before else ""))
    return found


def _overlap(one: Place, other: Place) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _dotted(prefix: Place, path: Place) -> str:
    return ".".join([*prefix, *path])


def _key(prefix: Place, entry: Entry, targets: Mapping[Place, str]) -> Key:
    target = targets.get(entry.path[:-1], "")
    known = parameters(target).get(entry.path[-1]) if target else None
    kind, said = (known.kind, known.meaning) if known is not None else ("", "")
    return Key(_dotted(prefix, entry.path), entry.value, kind, entry.comment or said)


# --- constructors -----------------------------------------------------------------------------------------------------


@cache
def parameters(target: str) -> Mapping[str, Key]:
    """The arguments of an admitted constructor that are keys; those of Lightning and torch mean what these say."""
    seen, found = outline(target), signatures.find(target)
    if seen is None or found is None:
        return {}
    texts = {parameter.name: parameter for parameter in signatures.parameters(*found) or ()}
    said = meanings(target)
    keys = {}
    for name, argument in seen[1].items():
        if argument.is_key and name.isidentifier():  # `**weights` takes any name
            default = NEEDED if argument.is_needed else _yaml(argument.default)
            meaning = said.get(name, "") if target.startswith(OWN) else f"{AS}{target}"
            keys[name] = Key(name, default, _kind(texts[name]), meaning)
    return keys


@cache
def meanings(target: str) -> Mapping[str, str]:
    """What a class or function says of its arguments under Args, its own words before those of its bases."""
    found = signatures.find(target)
    if found is None:
        return {}
    module, maker = found
    makers: list[ast.ClassDef | ast.FunctionDef] = [maker]
    if isinstance(maker, ast.ClassDef):
        kinds = [kind for _, kind in signatures.bases_first(module, maker) if kind is not None]
        inits = [item for kind in kinds for item in kind.body if isinstance(item, ast.FunctionDef)]
        makers = [*kinds, *(item for item in inits if item.name == "__init__")]
    said: dict[str, str] = {}
    for one in makers:
        said = _args(ast.get_docstring(one) or "") | said
    return said


def _args(docstring: str) -> dict[str, str]:
    """The section Args of a docstring of Google's style."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", inspect.cleandoc(docstring), re.MULTILINE)
    if section is None:
        return {}
    items = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {8,}.*)*)", section[1], re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in items}


def _yaml(value: object) -> str:
    if value is signatures.UNREAD:
        return "its own"
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000)).removesuffix("\n...\n").strip()


def _kind(parameter: signatures.Parameter) -> str:
    hint = parameter.hint()
    return parameter.annotation or "" if hint is None else hint_words(hint)


def hint_words(hint: Any) -> str:
    """A type hint in a few words, such as `number > 0 and <= 1` or `integer or null`."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if origin is Annotated:
        return " ".join([hint_words(inner[0]), *map(_bound, inner[1:])])
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(map(hint_words, inner))
    parts = dict.fromkeys(hint_words(part) for part in inner if part is not Ellipsis)
    kind = COLLECTIONS.get(origin, str(getattr(hint, "__name__", hint)))
    return f"{kind} of {', '.join(parts)}" if parts else kind


def _bound(bound: object) -> str:
    limits = [(sign, getattr(bound, name, None)) for name, sign in BOUNDS.items()]
    return " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)


# --- one file ---------------------------------------------------------------------------------------------------------


@cache
def read(file: Path) -> File:
    """A YAML file with its comments."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    words = [line.removeprefix("#").rstrip().removeprefix(" ") for line in lines[:head]]
    package = next((line.split()[1] for line in words if line.strip().startswith("@package")), None)
    header = tuple(line for line in words if line.strip() and not line.strip().startswith("@package"))
    tree = yaml.compose(text)
    entries = tuple(_leaves(tree, text, lines, head)) if tree is not None else ()
    bases, chosen = [], []
    for entry in entries:
        if entry.path[0] == "defaults" and entry.value != "_self_":
            if len(entry.path) == 1 and "@" not in entry.value:
                bases.append(entry.value)
            elif len(entry.path) == 1:
                name, _, group = entry.value.partition("@")
                chosen.append((group, name))
            else:
                chosen.append((entry.path[-1].removeprefix("override ").removeprefix("/"), entry.value))
    return File(package, header, tuple(bases), tuple(chosen), entries)


def _leaves(node: yaml.Node, text: str, lines: Sequence[str], head: int, path: Place = ()) -> Iterator[Entry]:
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            yield from _leaves(value, text, lines, head, (*path, str(key.value)))
        return
    if path == ("defaults",) and isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _leaves(item, text, lines, head, path)
        return
    value = text[node.start_mark.index : node.end_mark.index].strip()
    yield Entry(path, value, _comment(node, lines, head))


def _comment(node: yaml.Node, lines: Sequence[str], head: int) -> str:
    """The comment behind a value, else the lines of comment right above its own."""
    if found := re.search(r"(?:^|\s)#\s+(.*)$", lines[node.end_mark.line][node.end_mark.column :]):
        return str(found[1]).strip()
    above = node.start_mark.line
    while above > head and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    return " ".join(line.strip().removeprefix("#").strip() for line in lines[above : node.start_mark.line])
