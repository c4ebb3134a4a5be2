"""The few exceptions a user meets, each with its exit code.

A stray ValueError or KeyError is our bug and exits 1; these are answers.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
UNIX = ("fcntl", "resource")  # parts of Python that only Linux and macOS have: locks, limits
EXHAUSTED = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)


class SkinmtlError(Exception):
    """An answer to a user, in one line: `where: what; fix: fix`.

    Args:
        where: a file, a key of the config or a part of the machine.
        what: what is wrong there.
        fix: what to do about it.
    """

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
    """A file, a table, an image or a run folder that cannot be used."""


class ConfigError(SkinmtlError):
    """A value in the configuration that cannot be used."""


def no_package(group: str) -> ConfigError:
    """Answer for a config file of a group, such as `experiment`, that does not say where its keys belong."""
    what = f"the chosen file of this group lacks `# @package _global_`, so its keys would stand under `{group}`"
    return ConfigError(group, what, "let the first line of that file be `# @package _global_`")


class Diverged(SkinmtlError):
    """A loss that is not finite."""

    exit_code = 3


class ResourceError(SkinmtlError):
    """Not enough disk or memory."""

    exit_code = 4


class Interrupted(SkinmtlError):
    """Stopped from outside with everything saved; the same command with `resume=` resumes."""

    exit_code = 75


def check_system() -> None:
    """Refuse a system on which a run's folder cannot be locked and its processes cannot be watched.

    Raises:
        ConfigError: this is neither Linux nor macOS.
    """
    if missing := [name for name in UNIX if importlib.util.find_spec(name) is None]:
        lacks = f"this is {sys.platform}, whose Python has no {' and no '.join(missing)}"
        what = f"skinmtl runs on Linux and macOS; {lacks}"
        raise ConfigError("this system", what, "on Windows take WSL 2 (wsl --install), and run the same command there")


def file_size_limit() -> int | None:
    """Look up how many bytes a file of this process may have; None without a limit."""
    import resource  # not known to Windows, where this module still has to say so

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def lacks_memory(error: BaseException) -> bool:
    """Say whether an exception means that memory has run out, a GPU's or the machine's."""
    words = ("OutOfMemoryError", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in f"{type(error).__name__}: {error}" for word in words)


def cannot_write(path: Path, error: OSError, elsewhere: str, size: int = 0) -> ResourceError:
    """Answer for a file that cannot be written, with numbers.

    Args:
        path: the file, or a folder where it is not known which of its files.
        error: what the system said.
        elsewhere: how another place is named, such as `write elsewhere with hydra.run.dir=<folder>`.
        size: bytes that it takes; 0 where nobody knows.
    """
    numbers = [f"it takes {size / 1e6:.1f} MB"] if size else []
    fix = f"look at the disk, or {elsewhere}"
    if error.errno in FULL:
        with suppress(OSError):
            numbers.append(f"{shutil.disk_usage(_visible(path)).free / 1e6:.1f} MB are free there")
        fix = f"free disk space, or {elsewhere}"
    elif error.errno == errno.EFBIG:
        limit = file_size_limit()
        numbers += [] if limit is None else [f"a file may have {limit / 1e6:.1f} MB"]
        fix = "raise the limit on file sizes (ulimit -f unlimited)"
    elif error.errno in FORBIDDEN:
        folder = _visible(path)
        fix = f"allow writing into {folder if folder.is_dir() else folder.parent}, or {elsewhere}"
    what = f"cannot be written ({error.strerror or error})"
    return ResourceError(str(path), ": ".join([what, *filter(None, [", ".join(numbers)])]), fix)


def answer_to(error: BaseException, place: Path, elsewhere: str) -> SkinmtlError | None:
    """Find the answer that an error of the system stands for: a disk, memory, a place that cannot be used.

    Args:
        error: what was raised; an answer of ours is its own.
        place: where was written, for errors that name no file.
        elsewhere: as `cannot_write` has it.

    Returns:
        None for what the system had no part in, which is our own mistake.
    """
    if isinstance(error, SkinmtlError):
        return error
    if lacks_memory(error):
        what = str(error).split(". ")[0] or "not enough"
        return ResourceError("memory", what, "free some, or lower data.batch_size or data.size")
    if isinstance(error, ValueError) and str(error).startswith("Key backend:"):
        what = f"{os.environ.get('MPLBACKEND')!r} is no backend of this matplotlib"
        return ConfigError("MPLBACKEND", what, "unset it: figures are written to files")
    if not isinstance(error, OSError):
        return None
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    said = error.strerror or first_line(error)
    if error.errno in (*FULL, errno.EFBIG, errno.EROFS) or (path and error.errno in FORBIDDEN and _is_readable(path)):
        return cannot_write(path or place, error, elsewhere)
    if path and error.errno in (*FORBIDDEN, *ABSENT):
        return InputError(str(path), said, "check the path and its permissions, or name another")
    if error.errno in EXHAUSTED:
        return ResourceError(str(path or place), said, "look at the disk and the machine")
    return None


def _visible(path: Path) -> Path:
    """The path, or the nearest folder above it that this user can see."""
    return next((place for place in (path, *path.absolute().parents) if os.path.exists(place)), Path("/"))


def _is_readable(path: Path) -> bool:
    """Whether it could be read, so that what was refused is writing."""
    place = _visible(path)
    return os.access(place, os.R_OK | os.X_OK if place.is_dir() else os.R_OK)


def first_line(error: BaseException) -> str:
    """Shorten what an exception of another library says to one line, with its type."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


class Faults(SkinmtlError):
    """Several faults found at once, so that they can be mended in one go."""

    def __init__(self, faults: Sequence[SkinmtlError]) -> None:
        Exception.__init__(self, "\n".join(str(fault) for fault in faults))
        self.faults = list(faults)

    def __reduce__(self) -> tuple[type[Faults], tuple[list[SkinmtlError]]]:  # type: ignore[override]
        return type(self), (self.faults,)
