"""What the links of a testbed on one machine are meant to be: predictions without any measurement start from it."""

from hiertrain.problem.network import Link, Network
from hiertrain.testbeds.netns import FRAME_OVERHEAD, bucket_bytes
from hiertrain.testbeds.settings import LocalSettings, NetnsSettings

MESSAGE_MS = 0.3  # half of the round trip of one byte between two processes of one machine, as it was measured
HEADER_BYTES = 250  # of the bucket that Gloo's header of a message uses up, as it was measured


def nominal_network(settings: LocalSettings | NetnsSettings) -> Network:
    """The links of the settings as a probe would find them on a machine that is not busy.

    The kernel's token bucket lets as much pass at once after a pause as it holds, less what the header takes.
    """
    return Network(links=tuple(_nominal(link, settings) for link in settings.links))


def _nominal(link: Link, settings: LocalSettings | NetnsSettings) -> Link:
    burst_bytes = link.burst_bytes
    if isinstance(settings, NetnsSettings):
        burst_bytes = bucket_bytes(link.bandwidth_bps) / FRAME_OVERHEAD - HEADER_BYTES
    return Link(**{**dict(link), "latency_ms": link.latency_ms + MESSAGE_MS, "burst_bytes": burst_bytes})
