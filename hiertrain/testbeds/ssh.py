"""Placeholder, about to be written."""

from collections.abc import Mapping
from contextlib import AbstractContextManager

from hiertrain.testbeds.base import Host
from hiertrain.testbeds.settings import SshSettings


def ssh_hosts(settings: SshSettings) -> AbstractContextManager[Mapping[str, Host]]:
    """One host per worker."""
    raise NotImplementedError(settings.kind)
