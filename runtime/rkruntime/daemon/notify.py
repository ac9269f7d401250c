"""What systemd wants to hear of a service of Type=notify, see sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Optional


def tell(*lines: str) -> None:
    """Send ``READY=1``, ``STATUS=…`` and the like; does nothing where nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    # A lost message is no reason to stop serving, nor is a socket that cannot be had for one.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
        door.connect(address)
        door.sendall("\n".join(lines).encode())


def watchdog_s() -> Optional[float]:
    """Seconds within which the watchdog wants a ``WATCHDOG=1``; None where there is none for this process."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
