"""Configs, commands and errors without what could name a person or a place: paths and secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable

PATH = "[path]"
SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
PLACES = {"root", "masks", "lesions", "split", "cache_dir", "split_dir", "resume", "init_from"}  # keys that name paths
FILE = re.compile(r"\.(csv|tsv|json|ya?ml|npy|npz|pt|pth|ckpt|safetensors|zip|tar|gz|jpe?g|png)$", re.IGNORECASE)
SCORE = re.compile(r"(train|val|step|weight|gradients)/\w+(/\w+)?")  # columns of metrics.csv


def shareable(key: str, value: object) -> object:
    """Give a value of the config as strangers may see it: no path, for a name in it could be a person's; no secret.

    Args:
        key: its dotted key.
        value: of any kind.

    Returns:
        `[path]` for a path, `...` for a secret, else the value itself.
    """
    last = key.rpartition(".")[2]
    if SECRET.search(last) and value is not None:
        return "..."
    if isinstance(value, list | tuple):
        return [shareable(key, part) for part in value]
    if not isinstance(value, str):
        return value
    return PATH if last in PLACES and value not in ("auto", "null") else _without_path(value)


def _without_path(value: object) -> str:
    """Write a value as text; `[path]` for a path."""
    text = str(value)
    return PATH if is_path(text) else text


def is_path(text: str) -> bool:
    """Tell whether a word of a config or of a command names a file or a folder; 1/2 does not."""
    if SCORE.fullmatch(text):
        return False
    named = re.search(r"[^\W\d_]", text) is not None
    return text.startswith(("/", "~", "./", "../")) or FILE.search(text) is not None or ("/" in text and named)


def command_without_paths(program: str, words: Iterable[str]) -> str:
    """Write a command as one line with `[path]` for paths, told from its words: a path may have spaces."""
    return " ".join([program, *map(_word_without_path, words)])


def _word_without_path(word: str) -> str:
    if not re.search(r"\s", word):
        return without_paths_in(word)
    key, equals, value = word.partition("=")
    if not equals:
        return _without_path(word)
    # A list or dict with a path in it: what of it is whose name cannot be told.
    inside = any(re.search(rf"\b{place}['\"]?\s*:", value) for place in PLACES)
    return f"{key}={PATH if inside else shareable(key, value)}"


def without_paths_in(text: str, known: Iterable[str] = ()) -> str:
    """Replace the paths in a command, or in what a run ended with, by `[path]`.

    Args:
        text: one line or several.
        known: further words that are to go.
    """
    for path in sorted(known, key=len, reverse=True):
        text = re.sub(rf"""(?<![\w./]){re.escape(path)}(/[^\s'",;:)]*)?(?![\w/]|\.\w)""", PATH, text)
    # Where an error is stands first in its line, spaces and all.
    text = re.sub(r"^[~/][^:\n]*?(?=(, line \d+)?: )", PATH, text, flags=re.MULTILINE)
    text = re.sub(r"""(['"])([^'"]*/[^'"]*)\1""", lambda found: found[1] + _without_path(found[2]) + found[1], text)
    text = re.sub(r"""([\w.]+)=([^\s'",=;]+)""", lambda found: f"{found[1]}={shareable(found[1], found[2])}", text)
    return re.sub(r"""(?<![\w./])[/~][^\s'",=;:)]*""", PATH, text)
