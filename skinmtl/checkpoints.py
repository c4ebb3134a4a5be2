"""A run's weights on disk: plain types only, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from skinmtl.errors import InputError, ResourceError


def load(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU, tensors and plain types only. InputError names a file that is not one."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        what = f"not a readable checkpoint ({type(error).__name__})"
        raise InputError(str(path), what, "use another checkpoint of this run, or train again") from None
    return checkpoint


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints of plain types, written beside their place and renamed, so that a kill leaves the old one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, flush to disk, rename. OSError becomes ResourceError with the path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temp.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temp.replace(target)
        except (OSError, RuntimeError) as error:
            fix = "free disk space or check the folder's permissions"
            raise ResourceError(str(target), f"cannot be written ({error})", fix) from error
        finally:
            temp.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load plain types only; there is no switch to turn that off."""
        return load(Path(path))
