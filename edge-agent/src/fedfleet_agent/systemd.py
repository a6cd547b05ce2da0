"""Tells systemd that the agent is ready, alive, or stopping. Without systemd it says nothing to nobody."""

import os
import socket
from collections.abc import Mapping


class Notifier:
    """Speaks to the service manager that started this process.

    Attributes:
        watchdog_s: how often it wants to hear that the agent is alive; 0 if it does not.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "0")
        self.watchdog_s = int(microseconds) / 2e6 if watched and microseconds.isdecimal() else 0.0

    def say(self, *assignments: str) -> None:
        """Send assignments such as READY=1; a service manager that does not listen is no reason to fail."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as stream:
                stream.sendto("\n".join(assignments).encode(), socket.MSG_DONTWAIT, self._address)
        except OSError:
            pass
