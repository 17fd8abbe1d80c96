"""Links between workers: bandwidth per direction and one-way latency (paper, profiling stage)."""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

from pydantic import Field, model_validator

from hiertrain.values import (
    MOST_WORKERS,
    BurstBytes,
    InputError,
    LatencyMs,
    Name,
    PositiveBytes,
    PositiveCount,
    RateMbps,
    Spread,
    Value,
)


class LinkMeasurement(Value):
    """How a link's figures were obtained; the spread is the interquartile range."""

    repetitions: PositiveCount
    message_bytes: PositiveBytes
    bandwidth_spread_mbps: Spread
    latency_spread_ms: Spread


class Link(Value):
    """One direction of one pair of workers. The file speaks Mbit/s and ms; the code uses bit/s and s."""

    source: Name = Field(validation_alias="from", serialization_alias="from")
    target: Name = Field(validation_alias="to", serialization_alias="to")
    bandwidth_mbps: RateMbps
    latency_ms: LatencyMs
    burst_bytes: BurstBytes = 0.0  # that pass at once after a pause: the credit of a token bucket
    measurement: LinkMeasurement | None = None

    @property
    def bandwidth_bps(self) -> float:
        return self.bandwidth_mbps * 1e6

    @property
    def latency_s(self) -> float:
        return self.latency_ms * 1e-3

    @property
    def credit_s(self) -> float:
        """Seconds by which a pause of that length lets the next message arrive earlier, at most."""
        return self.transmission_s(self.burst_bytes)

    def transmission_s(self, size_bytes: float) -> float:
        """Seconds for which a message of ``size_bytes`` occupies the link, whatever part of it passes at once."""
        return 8.0 * size_bytes / self.bandwidth_bps


def relayed(links: Sequence[Link]) -> Link:
    """The links of a way, one after the other, as one: what the workers in between pass on while they receive it.

    Latencies add up, the least rate and the least burst count: nothing arrives earlier than over the links themselves,
    as long as nothing else is sent on them. Several ways that share a link are not modelled as sharing it.
    """
    return Link.model_construct(  # a sum of latencies may be longer than one that a file may have
        source=links[0].source,
        target=links[-1].target,
        bandwidth_mbps=min(link.bandwidth_mbps for link in links),
        latency_ms=sum(link.latency_ms for link in links),
        burst_bytes=min(link.burst_bytes for link in links),
    )


class Network(Value):
    """All links. No message is sent for 0 bytes.

    A link is a token bucket, full at the start of the iteration. Where it has served all messages so far by ``free``
    (at first: minus infinity), one of x > 0 bytes that is ready at ``ready`` makes that max(free, ready - credit) +
    8 x / bandwidth, and arrives at max(free, ready) + latency.

    ``through``: the worker that passes on a worker's messages, to and from all to whom it has no link: in a hierarchy,
    the one above it. A pair with neither a link nor a way through others cannot send each other anything.
    """

    links: tuple[Link, ...] = Field(max_length=MOST_WORKERS**2)
    through: dict[Name, Name] = Field(
        default_factory=dict, max_length=MOST_WORKERS, exclude_if=lambda through: not through
    )

    @model_validator(mode="after")
    def _one_link_per_direction(self) -> "Network":
        seen = set()
        for link in self.links:
            if link.source == link.target:
                raise ValueError(f"link from {link.source!r} to itself; a link joins two different workers")
            if (link.source, link.target) in seen:
                raise ValueError(f"link from {link.source!r} to {link.target!r} appears twice; it must appear once")
            seen.add((link.source, link.target))
        return self

    @model_validator(mode="after")
    def _ways_have_links_and_an_end(self) -> "Network":
        for name, relay in self.through.items():
            for source, target in ((name, relay), (relay, name)):
                if (source, target) not in self._by_pair:
                    raise ValueError(
                        f"through: {name!r} sends through {relay!r}, but there is no link from {source!r} to {target!r}"
                    )
        for name in self.through:
            self._above(name)
        return self

    def _above(self, name: str) -> list[str]:
        """The worker, who passes on its messages, who passes on those, and so on."""
        above = [name]
        while (relay := self.through.get(above[-1])) is not None:
            if relay in above:
                raise ValueError(f"through: {' -> '.join([*above, relay])} is a cycle; every way must have an end")
            above.append(relay)
        return above

    @cached_property
    def _by_pair(self) -> dict[tuple[str, str], Link]:
        return {(link.source, link.target): link for link in self.links}

    @cached_property
    def _found(self) -> dict[tuple[str, str], Link | None]:
        """What ``find`` has found so far."""
        return {}

    def find(self, source: str, target: str) -> Link | None:
        """The link between two workers, or the shortest way by ``through``, as one (``relayed``); None without any."""
        if (source, target) not in self._found:
            way = self._way(source, target)
            links = [self._by_pair[pair] for pair in pairwise(way)]
            self._found[source, target] = relayed(links) if len(links) > 1 else next(iter(links), None)
        return self._found[source, target]

    def _way(self, source: str, target: str) -> list[str]:
        """The workers from source to target, up from the one and down to the other; empty where no link joins both."""
        up, down = self._above(source), self._above(target)
        ways = [
            [*up[: rise + 1], *reversed(down[: fall + (first != last)])]
            for rise, first in enumerate(up)
            for fall, last in enumerate(down)
            if first == last or (first, last) in self._by_pair
        ]
        return min(ways, key=len, default=[])

    def link(self, source: str, target: str) -> Link:
        """What ``find`` finds. Raises InputError where it finds none."""
        found = self.find(source, target)
        if found is None:
            raise InputError(f"network: no link from {source!r} to {target!r}, and no way through others")
        return found

    def message_s(self, source: str, target: str, size_bytes: float) -> float:
        """Seconds from the start of sending to arrival on an idle link; 0 for an empty message."""
        if size_bytes == 0:
            return 0.0
        link = self.link(source, target)
        return link.latency_s + link.transmission_s(max(0.0, size_bytes - link.burst_bytes))
