"""The door: `python train.py experiment=resnet18_unet data.root=<HAM10000>`. Hydra, then skinmtl.train.run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CONF = Path(__file__).resolve().parent / "conf"

try:
    from skinmtl.door import main
except ModuleNotFoundError as error:
    if os.environ.get("SKINMTL_DEBUG"):
        raise
    print(
        f"skinmtl: error: environment: {error.name} is not installed for {sys.executable};"
        " fix: `make setup`, then .venv/bin/python train.py",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(CONF, sys.argv))
