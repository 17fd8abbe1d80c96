"""The local testbed: every worker is a process on this machine, without root.

Unequal speeds are emulated: links by the sender, which delivers a message when the link would have (``transport``),
and computing by pacing, which sleeps until an action has lasted as long as on the slower machine (``runtime``).
"""

import sys

from hiertrain.testbeds.base import Host, Testbed, TestbedSettings

ADDRESS = "127.0.0.1"
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


def open_local(settings: TestbedSettings) -> Testbed:
    """Start the workers of ``settings`` on this machine. Raises WorkerError."""
    host = Host(
        command=(sys.executable, "-m", "hiertrain.worker"),
        address=ADDRESS,
        environment={"GLOO_SOCKET_IFNAME": LOOPBACK},
    )
    return Testbed(settings, dict.fromkeys(settings.workers, host))
