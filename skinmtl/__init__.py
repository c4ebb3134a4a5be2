"""Multi-task learning on HAM10000: one network segments a skin lesion and diagnoses it."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skinmtl.cli.train import fit
    from skinmtl.evaluation.predict import Prediction, Predictor, load_run
    from skinmtl.evaluation.scores import evaluate_file, paired
    from skinmtl.runs.run import Run

    __version__: str

# albumentations asks a server for its newest version at import; nothing leaves the machine unasked.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__all__ = ["Prediction", "Predictor", "Run", "__version__", "evaluate_file", "fit", "load_run", "paired"]

HOMES = {
    "Prediction": "skinmtl.evaluation.predict",
    "Predictor": "skinmtl.evaluation.predict",
    "Run": "skinmtl.runs.run",
    "evaluate_file": "skinmtl.evaluation.scores",
    "fit": "skinmtl.cli.train",
    "load_run": "skinmtl.evaluation.predict",
    "paired": "skinmtl.evaluation.scores",
}


if not TYPE_CHECKING:  # else every misspelt name would be an object to a type checker

    def __getattr__(name: str) -> object:
        # Lazy, so that `skinmtl --help` and work on finished tables do not pay for importing torch.
        from importlib import import_module, metadata

        if name == "__version__":
            return metadata.version("skinmtl")
        if name not in HOMES:
            raise AttributeError(f"module 'skinmtl' has no attribute {name!r}")
        from skinmtl.errors import check_system

        check_system()
        return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
