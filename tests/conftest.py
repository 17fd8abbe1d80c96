"""What tests share: settings of hypothesis, a reason to skip what needs root, and the workers of local testbeds."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy

import pytest
from hypothesis import settings

from hiertrain.testbeds import netns, open_testbed
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings

# A shell ignores Ctrl-C in what it starts in the background, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Threads of small operations wait for each other in turns, for most of the time when workers use the same cores.
os.environ["OMP_NUM_THREADS"] = "1"
# The same examples every time, on however busy a machine.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

OpenLocal = Callable[[LocalSettings], AbstractContextManager[Testbed]]
# Three workers on this machine that emulate nothing.
FREE = LocalSettings(data_holder="device", workers=dict.fromkeys(("device", "edge", "cloud"), WorkerSettings()))


def pytest_addoption(parser: pytest.Parser) -> None:
    """What takes half an hour is asked for."""
    parser.addoption("--all-notebooks", action="store_true", help="run every notebook in a browser, not only two")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of network namespaces where there can be none; the reason says what is missing."""
    if missing := netns.missing():
        for item in items:
            if item.get_closest_marker("netns"):
                item.add_marker(pytest.mark.skip(reason=f"network namespaces need {', '.join(missing)}"))


class SharedWorkers:
    """One session for all tests that only use it: each of its processes has to import PyTorch, which takes seconds."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._session: Testbed | None = None

    @contextmanager
    def open(self, wanted: LocalSettings) -> Iterator[Testbed]:
        """In the place of ``open_testbed``: speeds and links are emulated by what each job says of them."""
        session = self._session
        if session is None or any(process.poll() is not None for process in session.processes.values()):
            session = self._session = self._stack.enter_context(open_testbed(FREE))  # none yet, or a test ended it
        testbed = copy(session)
        testbed.settings = wanted
        yield testbed


@pytest.fixture(scope="session")
def open_local() -> Iterator[OpenLocal]:
    with ExitStack() as stack:
        yield SharedWorkers(stack).open


@pytest.fixture
def testbed(open_local: OpenLocal) -> Iterator[Testbed]:
    with open_local(FREE) as opened:
        yield opened
