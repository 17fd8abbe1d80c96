"""The content of a testbed file: which workers there are, where they run and how they are linked.

The kinds share everything but what only one of them can do: a local testbed emulates links, one of network namespaces
has them shaped by the kernel, and machines that SSH reaches have their own.
"""

import re
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address
from os import PathLike
from typing import Annotated, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, RootModel, ValidationInfo, field_validator, model_validator

from hiertrain import files
from hiertrain.control.answers import BEAT_S
from hiertrain.problem.hierarchy import Tier
from hiertrain.problem.network import Link, Network
from hiertrain.values import MOST_WORKERS, InputError, Name, Port, Seconds, Slowdown, Threads, Value, shown

FRAME_OVERHEAD = 1514 / 1448  # bytes that the token bucket counts per byte of TCP payload in full frames
HEADER_BYTES = 250  # of the bucket that Gloo's header of a message uses up, as it was measured


class WorkerSettings(Value):
    """One worker of a testbed file."""

    slowdown: Slowdown = 1.0  # paced to this multiple of the machine's own time; 1: as fast as it is
    threads: Threads = 1
    accelerator: Literal["cpu", "cuda"] = "cpu"
    tier: Tier | None = Field(default=None, exclude_if=lambda tier: tier is None)  # None: its name says it

    @field_validator("slowdown")
    @classmethod
    def _room_for_pacing(cls, slowdown: float) -> float:
        if slowdown != 1 and not slowdown >= 2:
            raise ValueError(
                f"slowdown {slowdown:g}: must be 1 (no pacing) or at least 2, so that there is room to wait"
            )
        return slowdown


class SshWorker(WorkerSettings):
    """A worker on a machine that OpenSSH reaches; ``~/.ssh/config`` applies. Paths start at the home folder there."""

    host: str  # what ssh is told: a name, an alias of ~/.ssh/config or an address
    user: str | None = None
    port: Port | None = None
    address: str  # IPv4 address that the other workers reach it at
    interface: str  # the network interface whose first IPv4 address this is
    python: str = "python3"  # the interpreter there, such as hiertrain/.venv/bin/python
    folder: str | None = None  # rsync copies the package there; None: it is installed

    @field_validator("host", "user", "interface")
    @classmethod
    def _word_of_commands(cls, word: str | None, about: ValidationInfo) -> str | None:
        if word is not None and not re.fullmatch(r"\w[\w.:@%+-]*", word, flags=re.ASCII):  # no option, no path
            raise ValueError(
                f"{about.field_name} {shown(word)}: must be letters, digits and '_', after the first also any of .:@%+-"
            )
        return word

    @field_validator("python", "folder")
    @classmethod
    def _path_there(cls, path: str | None, about: ValidationInfo) -> str | None:
        if path is not None and (not path or path.startswith("-") or "\0" in path):
            raise ValueError(f"{about.field_name} {shown(path)}: must be a path that does not begin with '-'")
        return path

    @field_validator("address")
    @classmethod
    def _address_of_one_machine(cls, address: str) -> str:
        try:
            unusable = IPv4Address(address).is_unspecified
        except AddressValueError:
            unusable = True
        if unusable:
            raise ValueError(f"address {address!r}: must be an IPv4 address of the machine, such as 192.168.1.20")
        return address


W = TypeVar("W", bound=WorkerSettings)


class _TestbedSettings(Value, Generic[W]):
    """What every kind of testbed has."""

    data_holder: Name
    workers: Mapping[Name, W] = Field(min_length=1, max_length=MOST_WORKERS)
    # A worker or a link without a sign of life for so long counts as lost; a busy machine may miss a few beats.
    timeout_s: Annotated[Seconds, Field(ge=4 * BEAT_S)] = 8.0
    memory_kept: bool = True  # see ``control.memory``; False: as a plain script is run, to compare with
    one_machine: ClassVar[bool] = True  # whose cores the workers share

    @model_validator(mode="after")
    def _data_holder_is_a_worker(self) -> "_TestbedSettings[W]":
        _check_names({self.data_holder}, self.workers)
        return self


class LocalSettings(_TestbedSettings[WorkerSettings]):
    """Processes on this machine."""

    kind: Literal["local"] = "local"
    links: tuple[Link, ...] = ()  # emulated by the senders; empty: as fast as the machine's own network is

    @model_validator(mode="after")
    def _links_join_workers(self) -> "LocalSettings":
        _check_links(self.links, self.workers)
        return self

    @property
    def delayed(self) -> tuple[Link, ...]:
        """The links that senders emulate."""
        return self.links

    @staticmethod
    def burst_bytes(link: Link) -> float:
        """What a link of the file lets through at once after a pause."""
        return link.burst_bytes


class NetnsSettings(_TestbedSettings[WorkerSettings]):
    """Three hosts on this Linux machine: a network namespace for each worker, links shaped by the kernel."""

    kind: Literal["netns"] = "netns"
    links: tuple[Link, ...] = ()  # a pair and direction that is not listed is as fast as the machine

    @model_validator(mode="after")
    def _links_can_be_shaped(self) -> "NetnsSettings":
        _check_links(self.links, self.workers)
        for link in self.links:
            for field in ("latency_ms", "burst_bytes"):
                if value := getattr(link, field):
                    raise ValueError(
                        f"link from {link.source!r} to {link.target!r}: {field} {value:g}; "
                        "must be 0, because only rates are shaped here, with buckets that fit them"
                    )
        return self

    @property
    def delayed(self) -> tuple[Link, ...]:
        """None: the kernel shapes them."""
        return ()

    @staticmethod
    def burst_bytes(link: Link) -> float:
        """What the kernel's token bucket holds, less what Gloo's header of a message takes."""
        return bucket_bytes(link.bandwidth_bps) / FRAME_OVERHEAD - HEADER_BYTES


class SshSettings(_TestbedSettings[SshWorker]):
    """Machines that OpenSSH reaches, with the links that they have."""

    kind: Literal["ssh"] = "ssh"
    one_machine: ClassVar[bool] = False
    links: ClassVar[tuple[Link, ...]] = ()  # none that could be changed
    delayed: ClassVar[tuple[Link, ...]] = ()
    ssh_config: str | None = None  # a file for ``ssh -F``; None: ~/.ssh/config and what the system has


AnySettings = LocalSettings | NetnsSettings | SshSettings
Shaped = TypeVar("Shaped", LocalSettings, NetnsSettings)


class _TestbedFile(RootModel[Annotated[AnySettings, Field(discriminator="kind")]]):
    """A testbed file says by ``kind`` which of them it is."""


def load_testbed(path: str | PathLike[str]) -> AnySettings:
    """Read a testbed file. Raises InputError that names the file, the field, the value and the rule."""
    return files.load(_TestbedFile, path).root


def kind_of_times(settings: AnySettings) -> Literal["measured", "emulated"]:
    """The label of times from this testbed.

    Measured over the links of real machines and over links that the kernel shapes between namespaces, where paced
    computing lasts as a frozen profile says; emulated where the program itself delays messages, or computing elsewhere.
    """
    paced = settings.kind != "netns" and any(worker.slowdown != 1 for worker in settings.workers.values())
    delayed = settings.kind == "local" and bool(settings.links)
    return "emulated" if paced or delayed else "measured"


def with_bandwidth(settings: Shaped, worker: str, mbps: float) -> Shaped:
    """The same testbed with ``mbps`` (Mbit/s) on every link to and from ``worker``.

    Raises InputError when there is no such link, and ValueError for a bandwidth that is none.
    """
    if not any(worker in (link.source, link.target) for link in settings.links):
        raise InputError(f"testbed: no link to or from {worker!r} whose bandwidth could be {mbps:g} Mbit/s")
    links = tuple(
        Link(**{**dict(link), "bandwidth_mbps": mbps}) if worker in (link.source, link.target) else link
        for link in settings.links
    )
    return settings.model_copy(update={"links": links})


def bucket_bytes(rate_bps: float) -> int:
    """The size of the token bucket: what passes at once after a pause.

    At low rates about one frame, so that a short message is hardly faster than on a wire. At high rates it must cover
    what the kernel's timer is late by, or the link is slower than asked for.
    """
    return max(1600 if rate_bps <= 20e6 else 3200, round(rate_bps * 0.3e-3 / 8))


def _check_names(names: set[str], workers: Mapping[str, WorkerSettings]) -> None:
    for name in sorted(names - set(workers)):
        raise ValueError(f"{name!r} is not one of the workers {', '.join(workers)}")


def _check_links(links: tuple[Link, ...], workers: Mapping[str, WorkerSettings]) -> None:
    _check_names({name for link in links for name in (link.source, link.target)}, workers)
    Network(links=links)  # one link per direction
