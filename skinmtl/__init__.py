"""Multi-task learning on HAM10000: one network outlines a skin lesion and names it."""

import os

__version__ = "0.1.0"

# albumentations asks a server for its newest version at import; nothing leaves the machine unasked.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def __getattr__(name: str) -> object:
    # Lazy, so that `skinmtl --help` and work on finished tables do not pay for importing torch.
    if name in ("fit", "load_run"):
        from skinmtl.errors import check_system

        check_system()
    if name == "load_run":
        from skinmtl.evaluation.predict import load_run

        return load_run
    if name == "fit":
        from skinmtl.cli.train import fit

        return fit
    raise AttributeError(f"module 'skinmtl' has no attribute {name!r}")
