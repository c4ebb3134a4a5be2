"""A run's weights on disk: plain types only, written whole or not at all, and known by their sha256."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import pickletools
import shutil
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from types import NoneType
from typing import IO, Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from skinmtl.errors import Diverged, InputError, cannot_write, file_size_limit
from skinmtl.files import digest, sync_folder, temporary, write_json

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "last.previous.ckpt"
RECORD = "sha256.json"  # name and sha256 of every checkpoint in its folder
FORMAT = 1  # one more when a reader of today would misread what is written
NEEDED = ("state_dict", "skinmtl")
# Where nothing may be infinite. Elsewhere something may: the best score of a callback or schedule that has seen none.
FINITE = ("state_dict", "optimizer_states", "current_model_state", "averaging_state", "counts")
PLAIN = (Tensor, nn.Parameter, str, int, float, bool, NoneType)
ELSEWHERE = "write elsewhere with hydra.run.dir=<folder>"
OTHER = "use another checkpoint of this run, or train again"


def load(path: Path, needs: Sequence[str] = NEEDED) -> dict[str, Any]:
    """Load a checkpoint onto the CPU, tensors and plain types only; nothing in the file is ever run.

    Where a record of hashes stands beside it, the file has to be known there; alone in a folder it loads unchecked.

    Args:
        path: the file.
        needs: keys that it must have.

    Returns:
        What was saved, by its keys.

    Raises:
        InputError: there is no such file; it is empty, no checkpoint, cut short or changed since it was written; it
            holds objects that could run code; it is of something else than skinmtl, or of a later one.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(str(path), "no such file", "give a checkpoint, such as <run>/checkpoints/best.ckpt")
        known = _record(path.parent)
        with path.open("rb") as file:
            what = _damage(file)
            if what is None and known is not None:
                # Another process may replace the file and its record meanwhile: what either record knows is sound.
                sha, later = digest(file), _record(path.parent) or {}
                if sha not in {*known.values(), *later.values()}:
                    what = f"changed since it was written (its sha256 is not in {RECORD})"
            if what is not None:
                raise InputError(str(path), what, OTHER)
            checkpoint: dict[str, Any] = _unpickled(file, path)
    except OSError as error:
        raise InputError(
            str(path), f"cannot be read ({error.strerror or error})", "mend its permissions or its disk"
        ) from None
    if (what := _misfit(checkpoint, needs)) is not None:
        raise InputError(str(path), what, "use one that this version of skinmtl wrote")
    return checkpoint


def newest(folder: Path) -> Path:
    """Choose what to resume from: `last.ckpt` where it is sound, else the save before it, with a warning that says why.

    Args:
        folder: a run's checkpoints.

    Raises:
        InputError: neither can be used; both faults are named. Or the record of hashes cannot be read.
    """
    faults = []
    for name in (LAST, PREVIOUS):
        try:
            load(folder / name)
        except InputError as error:
            if Path(error.where).name == RECORD:
                raise
            faults.append(error)
            continue
        if faults:
            log.warning("%s: %s; resuming from %s, one save earlier", folder / LAST, faults[0].what, PREVIOUS)
        return folder / name
    both = "; ".join(f"{Path(fault.where).name}: {fault.what}" for fault in faults)
    raise InputError(str(folder), f"no checkpoint to resume from ({both})", "train again")


class SafeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints that a kill, a full disk or a flipped bit cannot take away unnoticed.

    Each is written beside its place, read back, and only then renamed; `last.ckpt` leaves the one before it as
    `last.previous.ckpt`. `best.ckpt` leaves none: a run resumes from `last.ckpt`, and a damaged best one is noticed.

    One process writes into a folder at a time; a run's folder is locked, and of several processes the first writes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._settled: set[Path] = set()  # folders whose record is exact, since this writer made it

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, flush to disk, verify, rename. Whatever fails, the checkpoint before it stays.

        Args:
            checkpoint: tensors and plain values, in dicts and lists.
            path: the file.
            storage_options: Lightning's; not used.

        Raises:
            Diverged: a weight, a state of the optimiser or of the moving average is not finite.
            ResourceError: the disk is full, a limit is reached, or the folder may not be written.
            TypeError: a value that is no tensor and no plain type, by its dotted key; whoever put it there has a bug.
        """
        target = Path(path).absolute()
        size = _checked(checkpoint, target)
        temp = temporary(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            before = self._living(target.parent)
            _check_room(target.parent, size)
            try:
                sha = _write({**checkpoint, "skinmtl_format": FORMAT}, temp)
                self._replace(target, temp, sha, before)
            finally:
                temp.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(target, error, ELSEWHERE, size) from error

    def _replace(self, target: Path, temp: Path, sha: str, before: Mapping[str, str]) -> None:
        folder = target.parent
        self._settled.discard(folder)  # until all is done
        after, goes = {**before, target.name: sha}, before.get(target.name)
        if kept := target.name == LAST and LAST in before:  # not a damaged one over a sound one
            after[PREVIOUS], goes = before[LAST], before.get(PREVIOUS)
        # Old and new hash before anything is replaced, so that after a kill whatever lies there is known.
        _write_record(folder, after if goes is None else after | {"replaced": goes})
        if kept:
            _keep(target, folder / PREVIOUS)
        temp.replace(target)
        sync_folder(folder)
        _write_record(folder, after)
        self._settled.add(folder)

    def _living(self, folder: Path) -> dict[str, str]:
        """Give name and hash of the checkpoints there; the first time what a killed writer has left is swept."""
        known = _record(folder)
        if known is not None and folder in self._settled:
            return {name: sha for name, sha in known.items() if (folder / name).exists()}
        for stray in [*folder.glob(".*.ckpt.*.tmp"), *folder.glob(f".{RECORD}.*.tmp")]:
            stray.unlink(missing_ok=True)
        found = {path.name: digest(path) for path in folder.glob("*.ckpt")}
        # Without a record they are older than records are, and are taken for what they say.
        return found if known is None else {name: sha for name, sha in found.items() if sha in known.values()}

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load plain types only; there is no switch to turn that off."""
        return load(Path(path))


# ---- reading


def _damage(file: IO[bytes]) -> str | None:
    """Say what keeps a file from being a checkpoint from its first to its last byte, seen from outside."""
    start = file.read(4)
    if not start:
        return "empty (0 bytes)"
    if start[:1] == b"\x80":  # a pickle without the zip around it: torch says what is in it
        return None
    if not b"PK\3\4".startswith(start):
        return f"not a checkpoint (it begins with {start!r})"
    return None if zipfile.is_zipfile(file) else "cut short (its end is missing)"


def _unpickled(file: IO[bytes], path: Path) -> Any:
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on files that it refuses
            # Given, not left to its default, weights_only stands above TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in a reader
        if names := _imports(file):
            what, fix = f"holds objects that could run code ({', '.join(names[:3])})", "do not trust where it came from"
            raise InputError(str(path), what, fix) from None
        raise InputError(str(path), f"damaged, or not a checkpoint ({type(error).__name__})", OTHER) from None


def _imports(file: IO[bytes]) -> list[str]:
    """List what a file's pickles would import beside the parts of tensors; nothing is imported."""
    names: list[str] = []
    words: list[str] = []
    with suppress(Exception):  # the end of the file, or whatever is wrong there
        if zipfile.is_zipfile(file):
            archive = zipfile.ZipFile(file)
            file = archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        else:
            file.seek(0)
        pickles = (pickletools.genops(file) for _ in range(8))  # torch's former format has several
        for code, word, _ in islice(chain.from_iterable(pickles), 1_000_000):
            words += word.split(" ") if isinstance(word, str) else []
            if code.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                module, name = words[-2:]
                # Protocol 2 goes by the names of Python 2.
                module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                names.append(f"{module}.{name}")
    parts = ("torch._utils._rebuild", "collections.OrderedDict")
    return [name for name in dict.fromkeys(names) if not name.startswith(parts) and not name.endswith("Storage")]


def _misfit(checkpoint: object, needs: Sequence[str]) -> str | None:
    if not isinstance(checkpoint, dict):
        return f"not a checkpoint of skinmtl (it holds a {type(checkpoint).__name__})"
    if missing := [key for key in needs if key not in checkpoint]:
        return f"not a checkpoint of skinmtl (it has no {' and no '.join(missing)})"
    if (version := checkpoint.get("skinmtl_format", FORMAT)) != FORMAT:
        return f"of another version of skinmtl (its format is {version}, this one reads {FORMAT})"
    try:
        odd = next((pair for pair in _leaves(checkpoint) if type(pair[1]) not in PLAIN), None)
    except RecursionError:
        return "nested without end"
    return odd and f"holds more than tensors and plain types ({odd[0]} is a {type(odd[1]).__name__})"


# ---- writing


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield everything that is no container, and a dict's keys where they are no plain type, by dotted key."""
    inner: list[tuple[object, object]] = []
    if type(value) in (dict, OrderedDict, Counter):
        assert isinstance(value, dict)
        inner = [*value.items(), *getattr(value, "__dict__", {}).items()]  # state_dict() keeps _metadata there
    elif isinstance(value, list | tuple) and type(value) in (list, tuple):
        inner = list(enumerate(value))
    else:
        yield key, value
    for name, part in inner:
        dotted = f"{key}.{name}" if key else str(name)
        if type(name) not in PLAIN[2:]:
            yield dotted, name
        yield from _leaves(part, dotted)


def _checked(checkpoint: Mapping[str, Any], target: Path) -> int:
    """Count the bytes of a checkpoint's tensors, once nothing in it is odd and no weight is broken.

    Raises:
        Diverged: a tensor that has to be finite is not.
        TypeError: a value that is no tensor and no plain type.
    """
    size = 0
    for key, leaf in _leaves(checkpoint):
        if type(leaf) not in PLAIN:
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            raise TypeError(f"{key}: a {kind} cannot be kept in a checkpoint, which holds tensors and plain types only")
        if not isinstance(leaf, Tensor):
            continue
        size += leaf.nbytes
        if key.split(".", 1)[0] in FINITE and not _is_finite(leaf):
            what = f"{key} is not finite, so nothing was saved"
            raise Diverged(target.name, what, "lower optim.lr; init_from=<this run> starts from its best weights")
    return size


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.detach().aminmax()  # both are NaN where one value is; a tenth of the time of isfinite
    return bool(low.isfinite() & high.isfinite())


def _check_room(folder: Path, size: int) -> None:
    """Raise OSError, as the system would later, where so many bytes will not fit; a little is left to other files."""
    limit = file_size_limit()
    if limit is not None and size > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if shutil.disk_usage(folder).free < size * 1.02 + 1e6:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Hashed(io.BufferedWriter):
    """A file that knows the sha256 of what was written, and its first failure."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "xb"))
        self.sha256 = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes and give their number, also after a failure, which `failure` keeps."""
        # torch's zip writer would answer a failed write with an error of its own, about positions.
        if self.failure is None:
            try:
                super().write(data)
            except OSError as error:
                self.failure = error
            self.sha256.update(data)
        return len(data)


def _write(checkpoint: Mapping[str, Any], path: Path) -> str:
    """Write a new file down to the disk and read it back from there.

    Returns:
        Its sha256.
    """
    with _Hashed(path) as file:
        torch.save(checkpoint, file)
        if file.failure is not None:
            raise file.failure
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # what is read back would else be memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    sha = file.sha256.hexdigest()
    if digest(path) != sha:
        raise OSError(errno.EIO, "what the disk gives back is not what was written")
    return sha


def _keep(path: Path, older: Path) -> None:
    """Give a file's content a second name, whatever had that before, while the first one stays."""
    link = temporary(older)
    try:
        os.link(path, link)
        link.replace(older)
    except OSError:  # a file system without hard links: for a moment there is only the second name
        path.replace(older)
    finally:
        link.unlink(missing_ok=True)  # `replace` leaves both names where they are one file's


def _record(folder: Path) -> dict[str, str] | None:
    """Read hashes by name; None where none are kept."""
    path = folder / RECORD
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        known = None
    if not isinstance(known, dict) or not all(isinstance(sha, str) for sha in known.values()):
        raise InputError(str(path), "not a record of hashes", "delete it: checkpoints beside it then load unchecked")
    return known


def _write_record(folder: Path, known: Mapping[str, str]) -> None:
    write_json(folder / RECORD, known)
    sync_folder(folder)
