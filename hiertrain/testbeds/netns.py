"""Placeholder, about to be written."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

from hiertrain.testbeds.base import Host
from hiertrain.testbeds.settings import NetnsSettings


def netns_hosts(settings: NetnsSettings) -> AbstractContextManager[Mapping[str, Host]]:
    """One host per worker."""
    raise NotImplementedError(settings.kind)
