"""What a failed training is told as, of errors that come too rarely to be waited for."""

from __future__ import annotations

from multiprocessing import resource_sharer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skinmtl.errors import ResourceError
from skinmtl.training.failures import failure

DATA: Any = SimpleNamespace(batch_size=4, size=(32, 32))


def test_a_worker_that_is_gone_when_its_batch_is_fetched_is_told_as_one_that_died(tmp_path: Path) -> None:
    with pytest.raises(OSError) as gone:
        resource_sharer._resource_sharer.get_connection((str(tmp_path / "of-a-worker"), 1))  # type: ignore[attr-defined]
    answer = failure(gone.value, DATA)
    assert isinstance(answer, ResourceError) and answer.exit_code == 4
    assert "data.workers: DataLoader worker (pid not known) died as it handed over a batch" in str(answer)
    with pytest.raises(OSError) as other:
        (tmp_path / "missing").read_text()
    assert failure(other.value, DATA) is None, "another file that is not there has nothing to do with workers"
