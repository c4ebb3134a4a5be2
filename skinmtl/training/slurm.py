"""What a run knows of SLURM: the job that it is, and how to have it begun again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess

from skinmtl.errors import first_line

log = logging.getLogger(__name__)


def job() -> str | None:
    """Give the job that SLURM knows this process by, of an array `<array>_<task>`; None elsewhere."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue(number: int | None) -> None:
    """Have SLURM begin this job again where it sent SIGUSR1, with which it says that the time is nearly over.

    Whatever else stops a job (SIGTERM, when it is taken away) SLURM answers by itself.
    """
    own = job()
    if own is None or number != signal.SIGUSR1:
        return
    try:
        subprocess.run(["scontrol", "requeue", own], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("scontrol requeue %s: %s: submit the job again with resume=auto", own, first_line(error))
