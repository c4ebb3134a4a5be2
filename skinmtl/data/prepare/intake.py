"""Images, masks and tables brought together from folders, archives and files, into one folder of our own."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from skinmtl.data.prepare import archives, exif
from skinmtl.data.prepare.folders import walk
from skinmtl.data.prepare.names import checked_name, is_archive, is_picture, is_table, stem
from skinmtl.errors import InputError, ResourceError, SkinmtlError
from skinmtl.terminal import tracked

logger = logging.getLogger(__name__)

SPARE = 1.1  # of the bytes to write have to be free on the disk


def collect(paths: Sequence[Path], into: Path, limits: archives.Limits) -> dict[str, SkinmtlError]:
    """Copy every image and table of some paths to one folder, images without their metadata.

    A folder around everything in a path is left away, and images that lie in none get one, named as their archive or
    folder: so files of one data set come together, however each was packed. Archives in a folder are opened too, unless
    the names in them are none of HAM10000's; so are archives in an archive, but none within those.

    Args:
        paths: folders, zip or tar files, tables.
        into: an empty folder.
        limits: what is left of what may be imported; it counts down.

    Returns:
        What is wrong with single images, by path below `into`; those are written as they are.

    Raises:
        InputError: an archive is broken or hostile, or two paths hold the same file.
        Faults: folders or files that cannot be read.
        ResourceError: the disk is too small.
    """
    faults: dict[str, SkinmtlError] = {}
    for path in paths:
        if path.is_dir():
            _from_folder(path, into, limits, faults)
        elif is_archive(path.name):
            _from_archive(path, into, limits, faults, depth=0)
        elif is_table(path.name) and path.is_file():
            _put(path.name, path.read_bytes(), into, faults)
        else:
            what = "neither a folder nor a .zip, .tar or .tar.gz file nor a .csv or .tab table"
            raise InputError(str(path), what if path.exists() else "no such file", "give what holds HAM10000")
    if not any(into.iterdir()):
        raise InputError(", ".join(map(str, paths)), "no image there", "give what holds HAM10000")
    return faults


def _from_folder(folder: Path, into: Path, limits: archives.Limits, faults: dict[str, SkinmtlError]) -> None:
    files = list(walk(folder))
    wanted = [file for file in files if is_picture(file.name) or is_table(file.name)]
    targets = _targets([file.relative_to(folder).as_posix() for file in wanted], folder.resolve().name)
    sizes = [file.stat().st_size for file in wanted]
    limits.take(sizes, folder)
    _check_room(sum(sizes), into)
    for file, size, target in tracked(list(zip(wanted, sizes, targets, strict=True)), f"reading {folder.name}"):
        if size > limits.file_bytes:
            raise InputError(str(file), f"{size:,} bytes", f"at most {limits.file_bytes:,} are taken")
        _put(target, file.read_bytes(), into, faults)
    for file in files:
        if not is_archive(file.name):
            continue
        if archives.holds_ours(file, limits):
            _from_archive(file, into, limits, faults, depth=0)
        else:
            logger.warning("%s: left out, no file in it has a name of HAM10000's", file)


def _from_archive(path: Path, into: Path, limits: archives.Limits, faults: dict[str, SkinmtlError], depth: int) -> None:
    with archives.opened(path, limits) as members:
        _check_room(sum(member.size for member in members), into)
        wanted = [member for member in members if is_picture(member.name) or is_table(member.name)]
        targets = _targets([member.name for member in wanted], stem(path.name))
        for member, target in tracked(list(zip(wanted, targets, strict=True)), f"unpacking {path.name}"):
            _put(target, b"".join(member.pieces()), into, faults)
        for member in members:
            if is_archive(member.name):
                _from_inner(member, into, limits, faults, depth)


def _from_inner(
    member: archives.Member, into: Path, limits: archives.Limits, faults: dict[str, SkinmtlError], depth: int
) -> None:
    """An archive within an archive, as the Dataverse bundles them; one within that has no honest reason."""
    if depth:
        where = f"{member.archive}: {member.name}"
        raise InputError(
            where, "an archive within an archive within another", "unpack it yourself, and give the folder"
        )
    inner = into / ".inner" / Path(member.name).name
    inner.parent.mkdir()
    try:
        with inner.open("xb") as file:
            file.writelines(member.pieces())
        _from_archive(inner, into, limits, faults, depth=1)
    finally:
        shutil.rmtree(inner.parent)


def _targets(names: Sequence[str], title: str) -> list[str]:
    """Where files of one source go: below no folder around all of them, and each picture in a folder."""
    parts = [name.split("/") for name in names]
    while parts and all(len(each) > 1 and each[0] == parts[0][0] for each in parts):
        if any(len(each) == 2 and is_picture(each[1]) for each in parts):
            break
        parts = [each[1:] for each in parts]
    loose = any(len(each) == 1 and is_picture(each[0]) for each in parts)
    return ["/".join([title, *each] if loose and is_picture(each[-1]) else each) for each in parts]


def _put(target: str, data: bytes, into: Path, faults: dict[str, SkinmtlError]) -> None:
    """Write one file; nothing reaches the disk's surface one by one, for the manifest would show a loss."""
    path = into / checked_name(target, into)
    if is_picture(target):
        try:
            data = exif.without_metadata(data, path)
        except InputError as fault:
            faults[target] = fault
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        if path.read_bytes() != data:
            raise InputError(target, "two files of this name, and they differ", "give one of them") from None
    except OSError as error:
        raise ResourceError(target, error.strerror or "cannot be written", "free space, or write elsewhere") from error


def _check_room(size: int, into: Path) -> None:
    free = shutil.disk_usage(into).free
    if free < size * SPARE:
        what = f"{size * SPARE / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
        raise ResourceError(str(into.parent), what, "free space, or write elsewhere")
