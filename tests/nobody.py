"""Another user, who may do nothing: permissions mean nothing to root, as whom tests often run."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from typing import Any


def as_nobody(act: Callable[[], Any]) -> Any:  # noqa: ANN401 -- whatever the act gives
    """What `act` gives in a process of its own that has dropped its rights. Only root may."""
    fork = multiprocessing.get_context("fork")
    answers: SimpleQueue[Any] = fork.SimpleQueue()
    process = fork.Process(target=_dropped, args=(act, answers))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return answers.get()


def _dropped(act: Callable[[], Any], answers: SimpleQueue[Any]) -> None:
    become_nobody()
    answers.put(act())


def become_nobody() -> None:
    """Drop this process's rights for good."""
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
