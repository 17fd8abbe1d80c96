"""The local testbed: every worker is a process on this machine, without root.

Unequal speeds are emulated: links by the sender, which delivers a message when the link would have
(``runtime.transport``), and computing by pacing, which sleeps until an action has lasted as long as on the slower
machine (``runtime.runner``).
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hiertrain.control.memory import worker_environment
from hiertrain.testbeds.host import Host
from hiertrain.testbeds.settings import LocalSettings

ADDRESS = "127.0.0.1"
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@contextmanager
def local_hosts(settings: LocalSettings) -> Iterator[Mapping[str, Host]]:
    """One host per worker: this machine."""
    command = (sys.executable, "-m", "hiertrain.worker")
    environment = {**worker_environment(settings.memory_kept), "GLOO_SOCKET_IFNAME": LOOPBACK}
    yield {name: Host(command, ADDRESS, environment) for name in settings.workers}
