"""The words of a command as Hydra's grammar takes them: a path as it is typed, the rest in quotes where needed."""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Sequence
from types import NoneType

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig

from skinmtl.errors import ConfigError
from skinmtl.runs import aliases
from skinmtl.runs.redaction import PLACES

log = logging.getLogger(__name__)

PATHS = PLACES | {"weights", "duplicates", "dir"}  # last words of the keys that may name a file or a folder
# Options of Hydra's whose next word is theirs.
VALUED = {"-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "-p", "--package"}
SWEPT = re.compile(r"(choice|glob|range|interval|sort|shuffle|tag)\(.*\)")  # several values, in Hydra's own words


def readable(words: Sequence[str], sweep: bool) -> list[str]:
    """Write the words of a command as Hydra's grammar takes them: paths in quotes where needed, `~` as one's home.

    Args:
        words: as they were typed, without the program.
        sweep: whether a comma can stand between several values. A path that is there is one all the same.

    Raises:
        ConfigError: a value that is no path and cannot be read, with the word that can.
    """
    before = ["", *words]
    return [word if last in VALUED else _readable(word, sweep) for last, word in zip(before, words, strict=False)]


def _readable(word: str, sweep: bool) -> str:
    key, equals, value = word.partition("=")
    if (name := aliases.key(bare := key.lstrip("+~"))) != bare:
        log.warning("%s is now called %s: write that", bare, name)
        key = key.removesuffix(bare) + name
        word = f"{key}{equals}{value}"
    if word.startswith("-") or not equals or value.startswith(("'", '"', "[", "{")):
        return word
    if is_path_key(key):
        return f"{key}={_path(value, sweep and not key.startswith('hydra.'))}"
    if _parsed(word) is None and value:
        what = f"Hydra cannot read {value!r} as it stands"
        raise ConfigError(key.lstrip("+~"), what, f"put it in quotes: {shlex.quote(f'{key}={quoted(value)}')}")
    return word


def is_path_key(key: str) -> bool:
    """Tell whether the value of a dotted key may name a file or a folder."""
    return key.rpartition(".")[2].lstrip("+") in PATHS


def quoted(value: str) -> str:
    """Quote a value as Hydra's grammar takes it, whatever it holds."""
    return QuotedString(value, Quote.single if '"' in value else Quote.double).with_quotes()


def expand(node: DictConfig) -> None:
    """Make `~` one's home wherever a config names a path, in place."""
    for key, value in list(node.items()):
        if isinstance(value, DictConfig):
            expand(value)
        elif isinstance(value, str) and value.startswith("~") and is_path_key(str(key)):
            node[key] = os.path.expanduser(value)


def _path(value: str, sweep: bool) -> str:
    if "${" in value or (sweep and SWEPT.fullmatch(value)):
        return value
    place = os.path.expanduser(value)
    if sweep and "," in value and not os.path.exists(place):
        return ",".join(_path(part.strip(), sweep=False) for part in value.split(","))
    read = _parsed(f"x={place}")
    # `lesions` is a table, or how many are synthetic: a number names a file where there is one.
    number = read is not None and isinstance(read[0], int | float | NoneType) and not os.path.exists(place)
    return place if number or read == (place,) else quoted(place)


def _parsed(word: str) -> tuple[object] | None:
    """Read the value of a word as Hydra does; None where it cannot."""
    try:
        return (OverridesParser.create().parse_override(word).value(),)
    except HydraException:
        return None
