"""The door: `python train.py experiment=resnet18_unet data.root=<HAM10000>`. Hydra, then skinmtl.training.run.run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from skinmtl.errors import ConfigError, check_system

CONF = Path(__file__).resolve().parent / "conf"

try:
    try:
        check_system()
        from skinmtl.cli.train import main
    except ModuleNotFoundError as error:
        what = f"{error.name} is not installed for {sys.executable}"
        raise ConfigError("environment", what, "`make setup`, then .venv/bin/python train.py") from error
except ConfigError as refusal:
    if os.environ.get("SKINMTL_DEBUG"):
        raise
    print(f"skinmtl: error: {refusal}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(CONF, sys.argv))
