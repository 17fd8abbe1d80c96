"""What the command line says of plans and runs."""

import pytest

from hiertrain.cli.summary import link_line, plan_lines, times_line, verdict
from hiertrain.problem.chain import Chain
from hiertrain.problem.network import Link, LinkMeasurement
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.profile import Profile
from hiertrain.training.run import Times
from tests.cli.test_main import PROFILE

CHAIN: Chain = Profile.model_validate(PROFILE).chain  # conv1, fc1, loss
IDLE = Assignment(parent="edge", depth=0, samples=0)


def plan(**workers: Assignment) -> Plan:
    samples = sum(part.samples for part in workers.values())
    return Plan(batch_size=samples, data_holder="device", workers=workers)


THREE = plan(
    device=Assignment(parent="edge", depth=2, samples=16),
    edge=Assignment(parent=None, depth=3, samples=40),
    cloud=Assignment(parent="edge", depth=1, samples=8),
)
ONE = plan(device=IDLE, edge=Assignment(parent=None, depth=3, samples=64))


def test_a_plan_names_its_layers() -> None:
    assert plan_lines(THREE, CHAIN) == [
        "plan for 64 samples, held by device:",
        "  device     layers 1..2 (conv1 .. fc1), 16 samples, sends to edge",
        "  edge       layers 1..3 (conv1 .. loss), 40 samples, root",
        "  cloud      layer 1 (conv1), 8 samples, sends to edge",
    ]
    assert plan_lines(ONE, CHAIN)[1] == "  device     does not compute"


@pytest.mark.parametrize(
    ("alone", "line"),
    [
        ({"edge": Times(0.125, 0.12)}, "1.20x as fast as the best single machine, edge (emulated; predicted: 1.25x)"),
        # The best one is the best that was seen, whatever was predicted.
        (
            {"edge": Times(0.12, 0.15), "cloud": Times(0.13, 0.14)},
            "1.40x as fast as the best single machine, cloud (emulated; predicted: 1.30x)",
        ),
        ({"edge": Times(0.1, 0.09)}, "0.90x as fast as the best single machine, edge (emulated; predicted: 1.00x)"),
    ],
)
def test_the_verdict_compares_with_the_best_single_machine_that_was_seen(alone: dict[str, Times], line: str) -> None:
    assert verdict(tuple(THREE.workers), "emulated", Times(0.1, 0.1), alone, 0.9583, 0.9561, proven=True) == (
        f"verdict: 3 workers are {line}; accuracy 95.8% against 95.6% in one process"
    )


@pytest.mark.parametrize(
    ("proven", "worth"),
    [(True, "is best here, to divide the work would gain nothing"), (False, "trains alone")],
)
def test_the_verdict_on_a_plan_of_one_worker_claims_no_more_than_is_proven(proven: bool, worth: str) -> None:
    assert verdict(("edge",), "measured", Times(0.1, 0.1), {}, 0.5, None, proven) == (
        f"verdict: one machine, edge, {worth}; accuracy 50.0%"
    )


def test_the_verdict_where_there_is_no_single_machine_to_compare_with() -> None:
    assert verdict(tuple(THREE.workers), "emulated", Times(0.1, 0.1), {}, 0.5, None, proven=True) == (
        "verdict: 3 workers, and no single machine's time to compare with; accuracy 50.0%"
    )


def test_a_link_shows_how_well_it_is_known() -> None:
    link = Link(source="device", target="edge", bandwidth_mbps=20, latency_ms=0.25)
    assert link_line(link).split() == ["device", "->", "edge", "20.00", "Mbit/s", "0.25", "ms"]
    spread = LinkMeasurement(repetitions=5, message_bytes=9, bandwidth_spread_mbps=1.5, latency_spread_ms=2.5)
    known = link_line(link.model_copy(update={"measurement": spread}))
    assert known.endswith("   spread     1.50 Mbit/s   2.50 ms")


def test_a_time_per_iteration_has_quartiles() -> None:
    assert times_line("measured", Times(0.01, 0.02), [0.01, 0.02, 0.03]) == (
        "measured: 20.00 ms per iteration (quartiles 15.00 and 25.00 over 3); predicted: 10.00 ms"
    )
