"""Links, and ways through other workers."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hiertrain import files
from hiertrain.problem.network import Link, Network, relayed
from hiertrain.values import MOST_WORKERS, InputError


def both_ways(*pairs: tuple[str, str], mbps: float = 8.0, latency_ms: float = 1.0) -> tuple[Link, ...]:
    return tuple(
        Link(source=source, target=target, bandwidth_mbps=mbps, latency_ms=latency_ms)
        for a, b in pairs
        for source, target in ((a, b), (b, a))
    )


# Two edges below a cloud, two devices below the first of them and one below the other.
ABOVE = {"device": "edge", "device-2": "edge", "device-3": "edge-2", "edge": "cloud", "edge-2": "cloud"}
HIERARCHY = Network(links=both_ways(*ABOVE.items()), through=ABOVE)


@pytest.mark.parametrize(
    ("source", "target", "links"),
    [
        ("device", "edge", 1),
        ("device", "device-2", 2),
        ("device", "cloud", 2),
        ("cloud", "device-3", 2),
        ("edge", "edge-2", 2),
        ("device", "edge-2", 3),
        ("device", "device-3", 4),
    ],
)
def test_latencies_add_up_along_the_way(source: str, target: str, links: int) -> None:
    link = HIERARCHY.link(source, target)
    assert (link.source, link.target, link.latency_ms, link.bandwidth_mbps) == (source, target, links, 8.0)
    assert HIERARCHY.link(source, target) is link
    assert HIERARCHY.message_s(source, target, 1000) == pytest.approx(1e-3 * links + 1e-3)


def test_a_link_across_shortens_the_way() -> None:
    network = Network(links=(*HIERARCHY.links, *both_ways(("edge", "edge-2"), latency_ms=0.0)), through=ABOVE)
    assert network.link("edge", "edge-2") is network.links[-2]
    assert network.link("device", "device-3").latency_ms == 2.0
    assert network.link("device", "cloud").latency_ms == 2.0


def test_without_a_way_there_is_no_link() -> None:
    network = Network(links=both_ways(("device", "edge"), ("edge", "cloud")))
    assert network.find("device", "cloud") is network.find("device", "phone") is None
    with pytest.raises(InputError, match="no link from 'device' to 'cloud', and no way through others"):
        network.link("device", "cloud")
    assert network.message_s("device", "cloud", 0) == 0.0


@pytest.mark.parametrize(
    ("through", "message"),
    [
        ({"device": "moon"}, "'device' sends through 'moon', but there is no link from 'device' to 'moon'"),
        ({"phone": "edge"}, "'phone' sends through 'edge', but there is no link from 'phone' to 'edge'"),
        ({"cloud": "device"}, "no link from 'cloud' to 'device'"),
        ({"edge": "edge"}, "no link from 'edge' to 'edge'"),
        ({"device": "edge", "edge": "device"}, "through: device -> edge -> device is a cycle"),
        ({"a device": "edge"}, "name 'a device': must be"),
    ],
)
def test_a_way_that_leads_nowhere_is_refused(through: dict[str, str], message: str) -> None:
    one_way = Link(source="device", target="cloud", bandwidth_mbps=1, latency_ms=0)
    with pytest.raises(ValidationError, match=message):
        Network(links=(*both_ways(("device", "edge")), one_way), through=through)


def test_a_network_of_links_alone_is_written_as_before() -> None:
    links = both_ways(("device", "edge"))
    assert set(Network(links=links).model_dump()) == {"links"}
    content = Network(links=links, through={"device": "edge"}).model_dump(mode="json")
    assert content["through"] == {"device": "edge"}
    assert files.parse(Network, content, "network").through == {"device": "edge"}


def test_the_most_workers_need_no_link_for_each_pair() -> None:
    through = {f"device-{number}": "edge" for number in range(1, MOST_WORKERS)}
    network = Network(links=both_ways(*through.items()), through=through)
    assert len(network.links) == 2 * (MOST_WORKERS - 1)
    assert all(network.link("device-1", name).latency_ms == 2.0 for name in through if name != "device-1")


links = st.builds(
    lambda **fields: Link(source="a", target="b", **fields),
    bandwidth_mbps=st.floats(0.1, 100.0),
    latency_ms=st.floats(0.0, 100.0),
    burst_bytes=st.sampled_from([0.0, 500.0, 20_000.0]),
)


@settings(max_examples=100)
@given(st.lists(links, min_size=2, max_size=5), st.integers(1, 100_000))
def test_nothing_arrives_earlier_than_over_the_links_themselves(way: list[Link], size_bytes: int) -> None:
    """Through token buckets in a row: the last byte arrives when it has left all of them, later by all latencies."""
    left_s = max(link.transmission_s(max(0.0, size_bytes - link.burst_bytes)) for link in way)
    whole = relayed(way)
    derived_s = whole.latency_s + whole.transmission_s(max(0.0, size_bytes - whole.burst_bytes))
    assert derived_s >= (left_s + sum(link.latency_s for link in way)) * (1 - 1e-12)
    for shorter, longer in pairwise([relayed(way[:count]) for count in range(1, len(way) + 1)]):
        assert longer.bandwidth_mbps <= shorter.bandwidth_mbps
        assert longer.latency_ms >= shorter.latency_ms
