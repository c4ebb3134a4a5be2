"""What `auto` stands for on this machine: accelerator and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skinmtl.errors import ConfigError

BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names them, on x86 and on Arm


def resolve_accelerator(accelerator: str) -> str:
    """Resolve `auto` to a GPU of CUDA or ROCm where there is one, else to the CPU; any other accelerator stays.

    Raises:
        ConfigError: Apple's GPU, which knows no float64, in which counts and probabilities are kept.
    """
    import torch

    if accelerator == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    apple = torch.backends.mps.is_available() and not torch.cuda.is_available()
    if accelerator == "mps" or (accelerator == "gpu" and apple):
        what = f"{accelerator} is Apple's GPU (MPS), which has no float64, in which scores are counted"
        raise ConfigError("trainer.accelerator", what, "use cpu, or auto, which takes the CPU on a Mac")
    return accelerator


def resolve_precision(precision: Any, accelerator: str) -> Any:
    """Resolve `auto` to bf16 where the hardware has it, else to float32; any other value stays.

    Args:
        precision: as Lightning's trainer takes it, or `auto`.
        accelerator: what `resolve_accelerator` gives.

    Raises:
        ConfigError: float16 where training would run on a CPU, on which it would silently be bf16.
    """
    import torch

    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if precision == "auto":
        has = torch.cuda.is_bf16_supported() if gpu else _cpu_has_bf16()
        return "bf16-mixed" if has else "32-true"
    if not gpu and str(precision) in ("16", "16-mixed", "16-true"):
        raise ConfigError("trainer.precision", f"{precision} needs a GPU", "use auto, bf16-mixed or 32-true")
    return precision


def _cpu_has_bf16() -> bool:
    try:
        return not BF16.isdisjoint(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
