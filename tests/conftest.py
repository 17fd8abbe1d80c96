"""Hypothesis draws the same examples every time, and does not mind a busy machine. What needs root may be skipped."""

import signal

import pytest
from hypothesis import settings

from hiertrain.testbeds import netns

# A shell ignores Ctrl-C in what it starts in the background, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of network namespaces where there can be none; the reason says what is missing."""
    if missing := netns.missing():
        for item in items:
            if item.get_closest_marker("netns"):
                item.add_marker(pytest.mark.skip(reason=f"network namespaces need {', '.join(missing)}"))
