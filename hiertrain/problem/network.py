"""Links between workers: bandwidth per direction and one-way latency (paper, profiling stage)."""

from functools import cached_property

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


class Network(Value):
    """All links. No message is sent for 0 bytes.

    A link is a token bucket, full at the start of the iteration. Where it has served all messages so far by ``free``
    (at first: minus infinity), one of x > 0 bytes that is ready at ``ready`` makes that max(free, ready - credit) +
    8 x / bandwidth, and arrives at max(free, ready) + latency.
    """

    links: tuple[Link, ...] = Field(max_length=MOST_WORKERS**2)

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

    @cached_property
    def _by_pair(self) -> dict[tuple[str, str], Link]:
        return {(link.source, link.target): link for link in self.links}

    def link(self, source: str, target: str) -> Link:
        """The link from ``source`` to ``target``. Raises InputError when the network has none."""
        try:
            return self._by_pair[source, target]
        except KeyError:
            raise InputError(
                f"network: no link from {source!r} to {target!r}; every pair of workers needs one in each direction"
            ) from None

    def message_s(self, source: str, target: str, size_bytes: float) -> float:
        """Seconds from the start of sending to arrival on an idle link; 0 for an empty message."""
        if size_bytes == 0:
            return 0.0
        link = self.link(source, target)
        return link.latency_s + link.transmission_s(max(0.0, size_bytes - link.burst_bytes))
