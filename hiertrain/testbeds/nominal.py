"""What the links of a testbed on one machine are meant to be: predictions without any measurement start from it."""

from hiertrain.problem.network import Link, Network
from hiertrain.testbeds.settings import LocalSettings, NetnsSettings

MESSAGE_MS = 0.3  # half of the round trip of one byte between two processes of one machine, as it was measured


def nominal_network(settings: LocalSettings | NetnsSettings) -> Network:
    """The links of the settings as a probe would find them on a machine that is not busy."""
    return Network(
        links=tuple(
            Link(
                **{
                    **dict(link),
                    "latency_ms": link.latency_ms + MESSAGE_MS,
                    "burst_bytes": settings.burst_bytes(link),
                }
            )
            for link in settings.links
        )
    )
