"""The few exceptions a user meets, each with its exit code.

A stray ValueError or KeyError is our bug and exits 1; these are answers.
"""

from __future__ import annotations

from collections.abc import Sequence


class SkinmtlError(Exception):
    """An answer to a user: where it is wrong, what is wrong, and how to fix it."""

    exit_code = 2

    def __init__(self, where: str, what: str, fix: str) -> None:
        text = f"{where}: {what}; fix: {fix}"
        # A file's name may hold a line's end, or what else a terminal would obey.
        super().__init__("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))
        self.where, self.what, self.fix = where, what, fix

    def __reduce__(self) -> tuple[type[SkinmtlError], tuple[str, str, str]]:
        # Exceptions cross from DataLoader workers by pickle, which would call __init__ with one argument.
        return type(self), (self.where, self.what, self.fix)


class InputError(SkinmtlError):
    """A file, a table, a photograph or a run folder that cannot be used."""


class ConfigError(SkinmtlError):
    """A value in the configuration that cannot be used."""


class Diverged(SkinmtlError):
    """A loss that is not finite."""

    exit_code = 3


class ResourceError(SkinmtlError):
    """Not enough disk or memory."""

    exit_code = 4


class Interrupted(SkinmtlError):
    """Stopped from outside with everything saved; the same command with `resume=` goes on."""

    exit_code = 75


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, a GPU's or the machine's."""
    words = ("OutOfMemoryError", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in f"{type(error).__name__}: {error}" for word in words)


def first_line(error: BaseException) -> str:
    """What an exception of another library says, in one line with its type."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


class Faults(SkinmtlError):
    """Several faults found in one look, so that they can be mended in one go."""

    def __init__(self, faults: Sequence[SkinmtlError]) -> None:
        Exception.__init__(self, "\n".join(str(fault) for fault in faults))
        self.faults = list(faults)

    def __reduce__(self) -> tuple[type[Faults], tuple[list[SkinmtlError]]]:  # type: ignore[override]
        return type(self), (self.faults,)
