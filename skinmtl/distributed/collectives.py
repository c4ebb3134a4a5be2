"""What the processes of one training tell one another. A process that trains alone is the first of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed


def join(meeting: Path, rank: int, world_size: int, device: str) -> None:
    """Meet the other processes; returns when all are there.

    Args:
        meeting: a file that only they know.
        rank: this process's number, from 0.
        world_size: how many there are.
        device: where it trains, such as "cpu" or "cuda:1".
    """
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group(
        "nccl" if place.type == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world_size,
        device_id=place if place.type == "cuda" else None,
    )


def leave() -> None:
    """Leave the other processes: from here on this one is alone."""
    if _together():
        distributed.destroy_process_group()


def rank() -> int:
    """Give this process's number, counted from 0."""
    return distributed.get_rank() if _together() else 0


def world_size() -> int:
    """Count the processes that train together."""
    return distributed.get_world_size() if _together() else 1


def mean(values: Tensor) -> Tensor:
    """Average a tensor over processes; each of them has to call this, with one shape."""
    if not _together():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / world_size()


def any_of(flags: Sequence[bool]) -> list[bool]:
    """Say of each flag whether it holds in any process; each of them has to call this, with as many flags."""
    if not _together():
        return list(flags)
    seen = torch.tensor(flags, dtype=torch.int32, device=_device())
    distributed.all_reduce(seen, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in seen]


def of_each(value: Any) -> list[Any]:  # noqa: ANN401 -- whatever can be sent
    """Gather a value of each process, in their order: plain values, or tensors on the CPU. Each has to call this."""
    if not _together():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def share(tensors: Iterable[Tensor]) -> None:
    """Give every process the first one's values, in place."""
    if _together():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


@contextmanager
def first_first() -> Iterator[None]:
    """Let the first process do something before the others do it: they find what it has fetched."""
    if rank() > 0:
        distributed.barrier()
    yield
    if _together() and rank() == 0:
        distributed.barrier()


def _device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if distributed.get_backend() == "nccl"
        else torch.device("cpu")
    )


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
