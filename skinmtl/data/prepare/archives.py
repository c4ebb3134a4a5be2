"""What is in a zip or tar file, looked at in full before a byte of it is unpacked.

Nothing is extracted by the archive's own rules: members are read as streams of bytes, and the caller chooses where
they go. Names, kinds, sizes and counts are judged first, checksums of the archive itself before that.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from skinmtl.data.prepare.names import FRESH, checked_name, folded, is_archive, is_clutter, is_ours, shown
from skinmtl.errors import InputError
from skinmtl.files import digest

WRONG = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error),
    *(NotImplementedError, RuntimeError, ValueError, LookupError, ArithmeticError, OSError),
)
BLOCK = 2**20  # bytes; the most that is read from an archive at once


@dataclass
class Limits:
    """What may be imported: `files` and `total_bytes` count down over all sources; HAM10000 stays far below each."""

    files: int = 500_000
    file_bytes: int = 200_000_000
    archive_bytes: int = 8_000_000_000  # of an archive within an archive
    total_bytes: int = 64_000_000_000
    ratio: int = 200  # unpacked to packed, from `small` on
    small: int = 65_536

    def take(self, sizes: Sequence[int], where: Path) -> None:
        """Count members against what is left.

        Args:
            sizes: of each, in bytes.
            where: their archive or folder, for what is said of it.

        Raises:
            InputError: more than is left.
        """
        self.files -= len(sizes)
        self.total_bytes -= sum(sizes)
        if self.files < 0:
            raise InputError(str(where), "too many files in it", "this is no HAM10000")
        if self.total_bytes < 0:
            raise InputError(str(where), "it unpacks to too many bytes", "this is no HAM10000")


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name and its size in bytes."""

    archive: Path
    name: str
    size: int
    open: Callable[[], IO[bytes]]

    def pieces(self) -> Iterator[bytes]:
        """Unpack its bytes, at most a megabyte at once.

        Raises:
            InputError: they are not what the archive says of them.
        """
        with _whole(self.archive), self.open() as stream:
            left = self.size
            while piece := stream.read(BLOCK):
                left -= len(piece)
                yield piece
            if left:
                raise EOFError(f"{shown(self.name)} ends too early")


def holds_ours(path: Path, limits: Limits) -> bool:
    """Say whether a file in an archive is named like one of HAM10000's. Nothing else is judged, and nothing unpacked.

    Args:
        path: the archive.
        limits: what is left of what may be imported; nothing is counted.

    Raises:
        InputError: it is broken, or unpacks to more than it may, so that its names are not known.
    """
    with _whole(path), ExitStack() as stack:
        if _is_zip(path):
            return any(map(is_ours, stack.enter_context(zipfile.ZipFile(path)).namelist()))
        most = limits.small + limits.ratio * path.stat().st_size
        source = _Bounded(stack.enter_context(_unpacked(path)), min(most, 2 * limits.total_bytes + BLOCK))
        archive = stack.enter_context(tarfile.open(fileobj=cast(IO[bytes], source), mode="r:"))  # noqa: SIM115
        for number, info in enumerate(archive):
            if number >= limits.files:
                raise ValueError(f"more than {limits.files:,} files")
            if is_ours(info.name):
                return True
        return False


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


@contextmanager
def opened(path: Path, limits: Limits) -> Iterator[list[Member]]:
    """Open an archive and judge what is in it, before anything is unpacked.

    Args:
        path: a zip or tar file.
        limits: what is left of what may be imported; it counts down.

    Yields:
        Its files, without folders and what a Mac adds.

    Raises:
        InputError: naming the archive and the member, for a checksum beside it that differs, a broken archive, a name
            that leads elsewhere or collides with another, a link, a device, or more than the limits.
    """
    with ExitStack() as stack:
        with _whole(path):
            check_sum(path)
            read = _zip if _is_zip(path) else _tar
            members = read(path, limits, stack)
        _check_collisions([member.name for member in members], path)
        yield members


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what the modules for archives raise on broken ones into an answer."""
    try:
        yield
    except WRONG as error:
        what = " ".join(f"a broken archive, or none at all ({error or type(error).__name__})".split())
        raise InputError(str(path), what, FRESH) from error


def check_sum(path: Path) -> None:
    """Compare with `<archive>.sha256` or `<archive>.md5`, in sha256sum's format, where one lies beside.

    Raises:
        InputError: it says another checksum.
    """
    for kind in ("sha256", "md5"):
        beside = path.with_name(f"{path.name}.{kind}")
        if not beside.is_file():
            continue
        expected = (beside.read_text(encoding="utf-8", errors="replace").split() or [""])[0].lower()
        if (found := digest(path, kind)) != expected:
            raise InputError(str(path), f"its {kind} is {found}, and {beside.name} says {expected[:64]}", FRESH)


def _zip(path: Path, limits: Limits, stack: ExitStack) -> list[Member]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    infos = archive.infolist()
    limits.take([info.file_size for info in infos], path)
    packed = path.stat().st_size
    _check_ratio(sum(info.file_size for info in infos), packed, path.name, path, limits)
    kept: dict[str, zipfile.ZipInfo] = {}
    members: list[Member] = []
    for info in infos:
        name = checked_name(info.orig_filename, path)
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{path}: {shown(name)}", "a link or a device", "leave it out of the archive")
        if info.flag_bits & 1:
            raise InputError(f"{path}: {shown(name)}", "encrypted", "unpack it yourself, and give the folder")
        _check_ratio(info.file_size, info.compress_size, name, path, limits)
        if not info.is_dir() and not is_clutter(name) and not _is_copy(info, kept.get(folded(name))):
            _check_size(name, info.file_size, path, limits)
            if folded(name) in kept:
                raise _collision(kept[folded(name)].filename, name, path)
            kept[folded(name)] = info
            members.append(Member(path, name, info.file_size, _zip_opener(archive, info)))
    return members


def _zip_opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(info)


def _is_copy(info: zipfile.ZipInfo, first: zipfile.ZipInfo | None) -> bool:
    """Whether it is a second copy, in a folder spelt in another case; a mirror of HAM10000 has all its images twice."""
    if first is None or info.filename == first.filename:
        return False
    names = {Path(each.filename).name for each in (info, first)}
    return len(names) == 1 and (info.CRC, info.file_size) == (first.CRC, first.file_size)


def _tar(path: Path, limits: Limits, stack: ExitStack) -> list[Member]:
    stream = stack.enter_context(_unpacked(path))
    source = _Bounded(stream, 2 * limits.total_bytes + BLOCK)  # headers and padding come on top
    archive = stack.enter_context(tarfile.open(fileobj=cast(IO[bytes], source), mode="r:"))  # noqa: SIM115
    members: list[Member] = []
    packed, total = path.stat().st_size, 0
    for info in archive:
        name = checked_name(info.name, path)
        if not (info.isdir() or info.isreg()) or info.issparse():
            raise InputError(f"{path}: {shown(name)}", "a link or a device", "leave it out of the archive")
        tarfile.data_filter(info, str(path.parent))  # a second opinion
        limits.take([info.size], path)
        total += info.size
        _check_ratio(total, packed, name, path, limits)
        if info.isdir() or is_clutter(name):
            continue
        _check_size(name, info.size, path, limits)
        members.append(Member(path, name, info.size, _tar_opener(archive, info)))
    source.seek(archive.offset)
    if source.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any nonsense for the end
        raise InputError(str(path), "the archive is cut off or broken", FRESH)
    while source.read(BLOCK):  # to the end of the compressed stream, where its own checksum is
        pass
    return members


def _tar_opener(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    return lambda: cast(IO[bytes], archive.extractfile(info))


def _unpacked(path: Path) -> IO[bytes]:
    """The tar file itself, whatever it is packed in."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(path))
    if magic.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(path))
    if magic.startswith(b"\xfd7zXZ\0"):
        return cast(IO[bytes], lzma.open(path))
    return path.open("rb")


class _Bounded(io.RawIOBase):
    """A stream that gives up where tarfile, believing a header, would read gigabytes at once or for ever."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream, self._most = stream, most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= BLOCK:
            raise ValueError(f"a header of {size} bytes")
        if self._stream.tell() > self._most:
            raise ValueError(f"more than {self._most:,} bytes")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset > self._most:  # of a packed file, all before it would be unpacked
            raise ValueError(f"more than {self._most:,} bytes")
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _check_size(name: str, size: int, path: Path, limits: Limits) -> None:
    most = limits.archive_bytes if is_archive(name) else limits.file_bytes
    if size > most:
        raise InputError(f"{path}: {shown(name)}", f"{size:,} bytes, at most {most:,} are taken", FRESH)


def _check_ratio(size: int, packed: int, name: str, path: Path, limits: Limits) -> None:
    if size > limits.small and size > limits.ratio * packed:
        what = f"{size:,} bytes packed into {packed:,}: more than 1 to {limits.ratio}"
        raise InputError(f"{path}: {shown(name)}", what, "this is no image; " + FRESH)


def _check_collisions(names: Sequence[str], path: Path) -> None:
    """Refuse names that are one where case or accents do not count, and files that are folders of others."""
    seen: dict[str, str] = {}
    for name in names:
        if folded(name) in seen:
            raise _collision(seen[folded(name)], name, path)
        seen[folded(name)] = name
    for name in names:
        above = folded(name)
        while above := above.rpartition("/")[0]:
            if above in seen:
                raise _collision(seen[above], name, path)


def _collision(first: str, name: str, path: Path) -> InputError:
    what = f"the same place as {shown(first)}"
    return InputError(f"{path}: {shown(name)}", what, "rename one of them in the archive")
