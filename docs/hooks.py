"""What MkDocs asks while it builds: the parts of the reference that are made of the code.

A page takes such a part by a line of its own, such as `{{ commands }}`, in whose place stands what the function of that
name gives.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from skinmtl import errors  # noqa: E402 -- of this tree, whatever is installed
from skinmtl.cli.commands import parser  # noqa: E402
from skinmtl.config import reference  # noqa: E402
from skinmtl.config.reference import AS, Group, Key, Option  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

CONF = ROOT / "conf"
NOTEBOOK = ROOT / "docs" / "examples" / "notebook" / "a_run.ipynb"
PICTURE = ROOT / "experiments" / "demo" / "figures" / "outlines.png"
KINDS = (errors.InputError, errors.ConfigError, errors.Diverged, errors.ResourceError, errors.Interrupted)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the picture of the demo, which is kept once, and the drawing of the layers."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "assets/outlines.png", abs_src_path=str(PICTURE)))
    files.append(File.generated(config, "assets/house.svg", content=house()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what is made of the code in its places."""
    return re.sub(r"^\{\{ (\w+) \}\}$", lambda found: PARTS[found[1]](), markdown, flags=re.MULTILINE)


# --- the house --------------------------------------------------------------------------------------------------------


def layers() -> list[list[str]]:
    """The folders and files of skinmtl from the top down, those of one layer together, as import-linter holds them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (found,) = (contract["layers"] for contract in contracts if contract["id"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in found]


def house() -> str:
    """A drawing of the layers: a row for each, its folders side by side."""
    width, step, gap, rows = 560, 44, 8, layers()
    parts = []
    for row, names in enumerate(rows):
        wide = (width + gap) / len(names) - gap
        for place, name in enumerate(names):
            left, top = place * (wide + gap), row * step
            parts.append(f'<rect x="{left + 1:.0f}" y="{top + 1}" width="{wide - 2:.0f}" height="{step - gap}"/>')
            parts.append(f'<text x="{left + wide / 2:.0f}" y="{top + 24}">{name}</text>')
    style = "rect { fill: #eaf1f6; stroke: #8fb0c6 } text { fill: #1b3442; text-anchor: middle; font: 14px sans-serif }"
    size = f'viewBox="0 0 {width} {len(rows) * step}" width="{width}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>{"".join(parts)}</svg>\n'


# --- the config -------------------------------------------------------------------------------------------------------


def group_table() -> str:
    """The groups, one a line."""
    rows = ([f"[`{group.name}`](#{_anchor(group)})", _code(group.default), group.meaning] for group in _groups())
    return _table(["group", "default", "what it chooses"], rows)


def run_keys() -> str:
    """The keys of config.yaml itself."""
    return _keys(reference.run_keys(CONF))


def config_groups() -> str:
    """Every group with its options and their keys."""
    return "\n\n".join("\n\n".join(_group(group)) for group in _groups())


def _groups() -> list[Group]:
    return reference.groups(CONF)


def _group(group: Group) -> list[str]:
    default = f" Default: {_code(group.default)}." if group.default else ""
    parts = [f"### `{group.name}=` {{#{_anchor(group)}}}", _sentence(group.meaning) + default]
    parts.append(_table([group.name, "what it is"], ([_code(one.name), _about(one)] for one in group.options)))
    # Options that build one thing, such as those of data, have its keys in common: they are shown once.
    alike: dict[tuple[str, ...], list[Option]] = {}
    for option in group.options:
        alike.setdefault((option.target, *(key.name for key in option.keys)), []).append(option)
    for options in alike.values():
        first = next((option for option in options if not option.sets), options[0])
        own = [key for key in first.keys if not key.is_foreign]
        names = ", ".join(_code(option.name) for option in options)
        parts += [f"Keys of {names}:", _keys(own)] if own else []
        if others := [key for key in first.keys if key.is_foreign]:
            words = ", ".join(_code(_named(key)) for key in others)
            parts.append(
                f"Keys of {names} that mean what they do in {_code(others[0].meaning.removeprefix(AS))}: {words}."
            )
    return parts


def _about(option: Option) -> str:
    """What a file says of its option, commands as code, and what it sets beside an option that it begins with."""
    words = [_sentence(option.headline), *map(_commands, option.notes)]
    if option.sets:
        words.append("Sets " + ", ".join(_code(f"{name}={value}") for name, value in option.sets) + ".")
    return " ".join(words)


def _commands(line: str) -> str:
    bare = line.strip()
    return f"<br>{_code(bare)}<br>" if bare.startswith(("python ", "skinmtl ", "make ")) else bare


def _keys(keys: Iterable[Key]) -> str:
    rows = ([_code(_named(key)), _code(key.default), key.kind, _sentence(key.meaning)] for key in keys)
    return _table(["key", "default", "may be", "meaning"], rows)


def _named(key: Key) -> str:
    """A key as a command adds or changes it."""
    return key.name if key.is_given else f"+{key.name}"


def _anchor(group: Group) -> str:
    return "group-" + re.sub(r"\W|_", "-", group.name)


# --- commands and errors ----------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command of `skinmtl`, from its parser."""
    (choice,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    about = {action.dest: action.help or "" for action in choice._choices_actions}
    parts = []
    for name, command in choice.choices.items():
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        actions = (action for action in command._actions if not isinstance(action, argparse._HelpAction))
        rows = ([_argument(action), _sentence(action.help or "")] for action in actions)
        parts += [
            f"## skinmtl {name}",
            _sentence(about[name]),
            f"```\n{usage}\n```",
            _table(["argument", "meaning"], rows),
        ]
    return "\n\n".join(parts)


def _argument(action: argparse.Action) -> str:
    shown = action.metavar if isinstance(action.metavar, str) else action.dest
    if not action.option_strings:
        return _code(shown)
    takes = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return _code(", ".join(action.option_strings) + takes)


def exit_codes() -> str:
    """Exit codes, with the errors that have them."""
    rows = [["0", "", "Done."], ["1", "", "A bug of skinmtl: please report it."]]
    rows += [[str(kind.exit_code), _code(kind.__name__), (kind.__doc__ or "").splitlines()[0]] for kind in KINDS]
    return _table(["exit code", "error", "meaning"], rows)


# --- the notebook -----------------------------------------------------------------------------------------------------


def notebook() -> str:
    """Its cells, as text and code."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    texts = (("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells)
    # One level down, for the page has a title of its own.
    return "\n\n".join(f"```python\n{text}\n```" if code else re.sub(r"^#", "##", text) for text, code in texts)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "?", "!")) or not words else ".")


def _code(words: str) -> str:
    return f"`{words}`" if words else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = (
        [cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in [head, ["---"] * len(head), *rows]
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part for part in (group_table, run_keys, config_groups, commands, exit_codes, notebook)
}
