"""A machine without a network: whatever tries to reach beyond this one is refused, and remembered."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

attempts: list[str] = []


class NoNetwork(socket.gaierror):
    """What a machine without a network says; an OSError, so that code which copes with that can show it."""


def block() -> None:
    """Refuse names and addresses beyond loopback, in this process, from now on."""
    if getattr(socket.getaddrinfo, "offline", False):
        return
    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, _method(getattr(socket.socket, name)))
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse(host, "")
        return look_up(host, *args, **kwargs)

    getaddrinfo.offline = True  # type: ignore[attr-defined]
    socket.getaddrinfo = getaddrinfo


def _method(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: socket.socket, *args: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(args[-1], tuple):
            _refuse(*args[-1][:2])
        return original(self, *args)

    return method


def _refuse(host: object, port: object) -> None:
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    if name in ("localhost", socket.gethostname()):
        return
    try:
        if ipaddress.ip_address(name.partition("%")[0]).is_loopback:
            return
    except ValueError:
        pass
    attempts.append(f"{name}:{port}".rstrip(":"))
    raise NoNetwork(socket.EAI_AGAIN, f"tests have no network, and something asked for {attempts[-1]}")
