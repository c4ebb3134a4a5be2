"""From what lies somewhere to a checked folder: all of it, or nothing."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from skinmtl.data.prepare import manifest, verify
from skinmtl.data.prepare.archives import Limits
from skinmtl.data.prepare.arrange import arrange
from skinmtl.data.prepare.download import Remote, fetch
from skinmtl.data.prepare.intake import collect
from skinmtl.data.prepare.web import PATIENT, Patience
from skinmtl.errors import Faults, InputError, ResourceError, SkinmtlError

SPARE = 2.2  # times the download: the archives and what is in them


def download(remotes: Sequence[Remote], out: Path, patience: Patience = PATIENT) -> list[Path]:
    """The files in `<out>.download`, where they stay until `out` is there; a broken download goes on.

    Raises:
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
    """The folder for downloads to `out`, beside it."""
    return out.with_name(f"{out.name}.download")


def bring(paths: Sequence[Path], out: Path, lesions: Path | None = None, limits: Limits | None = None) -> verify.Report:
    """Import `paths` to `out`, which appears when everything in it has been decoded and its manifest is written.

    Raises:
        InputError: `out` holds something, or there is no HAM10000 in `paths`.
        Faults: everything wrong with pictures and tables, by the names that they have in `paths`.
    """
    refuse_filled(out)
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    found, ready = partial / "found", partial / "ready"
    found.mkdir(parents=True)
    try:
        broken = collect(paths, found, limits or Limits())
        origin = arrange(found, ready, lesions)
        report = verify.look(ready)
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
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def refuse_filled(out: Path) -> None:
    """Raise unless `out` is missing or an empty folder that another can take the place of."""
    if out.is_mount():
        raise InputError(str(out), "a disk of its own, which cannot be written in one go", f"give {out / 'ham10000'}")
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        fix = f"give a new one; or check it: skinmtl prepare {out} --verify"
        raise InputError(str(out), "there is something already", fix)


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
