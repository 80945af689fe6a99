"""Nothing leaves this machine: connections to other addresses are stopped and noted."""

import ipaddress
import os
import sys
from typing import Any

VARIABLE = "RACELAB_LOOPBACK_ONLY"  # set in the environment: child processes obey, too
blocked: list[str] = []  # what was stopped, in this process
_installed = False


class LeftTheMachine(OSError):
    """Code under test tried to reach an address that is not on this machine."""


def install() -> None:
    """Guard this process until it ends, and its children that call `racelab.start`.

    Uses an audit hook (PEP 578), so no library can go around it.
    """
    global _installed
    os.environ[VARIABLE] = "1"
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)


def install_if_asked() -> None:
    if os.environ.get(VARIABLE):
        install()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    if host is not None and not is_loopback(host):
        blocked.append(str(host))
        raise LeftTheMachine(f"{host!r} is not on this machine")


def is_loopback(host: str | bytes) -> bool:
    """True for localhost, 127.0.0.0/8, ::1, and "" (any address of this machine)."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False
