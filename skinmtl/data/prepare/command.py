"""Import HAM10000 to a checked folder: all of it, or nothing."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from skinmtl.data.prepare import manifest, verify
from skinmtl.data.prepare.archives import Limits
from skinmtl.data.prepare.arrange import arrange
from skinmtl.data.prepare.download import Remote, fetch
from skinmtl.data.prepare.intake import collect
from skinmtl.data.prepare.names import is_picture, shown
from skinmtl.data.prepare.web import PATIENT, Patience
from skinmtl.errors import Faults, InputError, ResourceError, SkinmtlError
from skinmtl.files import locked

SPARE = 2.2  # times the download: the archives and what is in them


def download(remotes: Sequence[Remote], out: Path, patience: Patience = PATIENT) -> list[Path]:
    """Download files to `<out>.download`, where they stay until `out` is there; a broken download is resumed.

    Args:
        remotes: what to fetch.
        out: where the data set will be.
        patience: how long to wait for the server.

    Returns:
        The files, in the order of `remotes`.

    Raises:
        InputError: `out` holds something, or the server refuses.
        Interrupted: Ctrl-C.
        ResourceError: the disk is too small.
    """
    refuse_filled(out)
    folder = downloads(out)
    folder.mkdir(parents=True, exist_ok=True)
    here = sum(path.stat().st_size for path in folder.iterdir())
    need = sum(remote.size or 0 for remote in remotes) * SPARE - here
    if (free := shutil.disk_usage(folder).free) < need:
        what = f"{need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        raise ResourceError(str(folder), what, "free space, or write elsewhere")
    return [fetch(remote, folder, patience) for remote in remotes]


def downloads(out: Path) -> Path:
    """Name the folder for downloads to `out`, beside it."""
    return out.with_name(f"{out.name}.download")


def bring(paths: Sequence[Path], out: Path, lesions: Path | None = None, limits: Limits | None = None) -> verify.Report:
    """Import HAM10000 to a folder that appears when everything in it has been decoded and its manifest is written.

    Args:
        paths: folders, archives and tables that hold it together.
        out: the folder; missing, or empty.
        lesions: a table of lesion ids to join.
        limits: of what may be imported; `Limits()` by default.

    Returns:
        What was found in it.

    Raises:
        InputError: `out` holds something, or there is no HAM10000 in `paths`.
        Faults: everything wrong with images and tables, by the names that they have in `paths`.
    """
    refuse_filled(out)
    _sweep(out)
    with _place(out) as partial:
        found, ready = partial / "found", partial / "ready"
        found.mkdir()
        try:
            broken = collect(paths, found, limits or Limits())
            origin = arrange(found, ready, lesions)
            report = verify.look(ready)
            report.notes += _left_behind(found)
            for target, came in origin.items():
                if came in broken and target not in report.faults:
                    report.faults[target] = [broken[came]]
            if report.faults:
                raise Faults([_renamed(fault, ready, origin) for fault in report.all_faults()])
            manifest.write(ready, report.sums)
            if out.exists():
                out.rmdir()
            ready.rename(out)
        except SkinmtlError as error:
            raise _below(error, partial) from error
    return report


@contextmanager
def _place(out: Path) -> Iterator[Path]:
    """A folder to work in, beside `out`: claimed by this process, and gone in the end."""
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    with ExitStack() as stack:
        with suppress(OSError):  # a disk that knows no locks on folders: then nobody can sweep there either
            stack.enter_context(locked(partial))
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        yield partial


def _sweep(out: Path) -> None:
    """Remove what imports to `out` left that were killed."""
    name = re.compile(re.escape(out.name) + r"\.partial-[0-9a-f]{8}")
    left = [folder for folder in out.parent.iterdir() if name.fullmatch(folder.name)] if out.parent.is_dir() else []
    for folder in left:
        with suppress(OSError), locked(folder):  # else claimed, or another user's
            if any(folder.iterdir()):  # an empty one may be about to be claimed
                shutil.rmtree(folder)  # which follows no link


def refuse_filled(out: Path) -> None:
    """Raise unless `out` is missing or an empty folder that another can take the place of."""
    if out.is_mount():
        raise InputError(str(out), "a disk of its own, which cannot be written in one go", f"give {out / 'ham10000'}")
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        fix = f"give a new one; or check it: skinmtl prepare {out} --verify"
        raise InputError(str(out), "there is something already", fix)


def _left_behind(found: Path) -> list[str]:
    """A note of the images that were given and are no part of the data set."""
    left = sorted(path.relative_to(found).as_posix() for path in found.rglob("*") if is_picture(path.name))
    why = "no row of the table has them, as an image or by the name of a mask"
    return [f"{len(left):,} images stayed behind, such as {shown(left[0])}: {why}"] if left else []


def _renamed(fault: SkinmtlError, ready: Path, origin: dict[str, str]) -> SkinmtlError:
    """The fault under the name that the file had before."""
    target = fault.where.removeprefix(f"{ready}/")
    return type(fault)(origin.get(target, target), fault.what, fault.fix)


def _below(error: SkinmtlError, partial: Path) -> SkinmtlError:
    """The error without the names of folders that are gone when it is read."""
    if isinstance(error, Faults):
        return Faults([_below(fault, partial) for fault in error.faults])
    where, what = (
        text.replace(f"{partial}/found/", "").replace(f"{partial}/found", "what was given")
        for text in (error.where, error.what)
    )
    return type(error)(where, what, error.fix)
