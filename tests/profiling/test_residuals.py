import pytest

from hiertrain.problem.chain import Layer
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.profile import LayerCost, LayerTimes, Measurement, Profile, Step, TimingPoint, WorkerProfile
from hiertrain.profiling.estimates import LIMIT, missed, residuals

LAYERS = tuple(Layer(name=name, output_bytes=8, parameter_bytes=0) for name in ("pool", "loss"))
COST = LayerCost(fixed_s=0, per_sample_s=1)  # what each layer costs; twice as much on a worker half as fast


def measured(slowdown: float, pool_s: dict[int, float]) -> WorkerProfile:
    """A worker whose pooling took these times forward; everything else took what it costs."""

    def point(layer: str, step: Step, samples: int) -> TimingPoint:
        median_s = pool_s[samples] if (layer, step) == ("pool", "forward") else float(samples)
        return TimingPoint(layer=layer, step=step, samples=samples, median_s=median_s, spread_s=0)

    steps: tuple[Step, ...] = ("forward", "backward", "update")
    points = tuple(point(layer.name, step, n) for layer in LAYERS for step in steps for n in pool_s)
    measurement = Measurement(host="here", threads=1, warm_up=0, repetitions=1, points=points)
    times = LayerTimes(forward=COST, backward=COST, update_s=0).scaled(slowdown)
    return WorkerProfile(layers=(times, times), slowdown=slowdown, measurement=measurement)


POOL_S = {1: 1.0, 8: 8.0, 32: 64.0, 128: 256.0}
PROFILE = Profile(
    model="m",
    sample_bytes=4,
    layers=LAYERS,
    workers={
        "device": measured(2, POOL_S),
        "edge": measured(1, POOL_S),
        "cloud": WorkerProfile(layers=(LayerTimes(forward=COST, backward=COST, update_s=0),) * 2),
    },
)


def plan(device: int, edge: int) -> Plan:
    """Both compute all layers."""
    parts = {
        "device": Assignment(parent="edge", depth=2, samples=device),
        "cloud": Assignment(parent="edge", depth=0, samples=0),
    }
    return Plan(
        batch_size=device + edge,
        data_holder="device",
        workers={**parts, "edge": Assignment(parent=None, depth=2, samples=edge)},
    )


def test_every_point_has_its_residual_and_a_worker_without_measurement_has_none() -> None:
    found = residuals(PROFILE)
    assert len(found) == 2 * 2 * 2 * len(POOL_S)
    assert {residual.worker for residual in found} == {"device", "edge"}
    wrong = [residual for residual in found if residual.relative]
    assert [(r.worker, r.layer, r.step, r.samples, r.measured_s, r.cost_s) for r in wrong] == [
        ("device", "pool", "forward", 32, 128.0, 64.0),
        ("device", "pool", "forward", 128, 512.0, 256.0),
        ("edge", "pool", "forward", 32, 64.0, 32.0),
        ("edge", "pool", "forward", 128, 256.0, 128.0),
    ]
    assert {residual.relative for residual in wrong} == {-0.5}


@pytest.mark.parametrize(
    ("device", "edge", "expected"),
    [
        (8, 5, []),  # 5 is between the counts 1 and 8, both as measured
        (8, 32, [("edge", 32)]),
        (9, 1, [("device", 32)]),  # between 8 and 32
        (200, 40, [("device", 128), ("edge", 128), ("edge", 32)]),  # beyond all counts; those of the most seconds first
    ],
)
def test_a_layer_is_missed_where_the_counts_next_to_the_plans_are(
    device: int, edge: int, expected: list[tuple[str, int]]
) -> None:
    found = missed(PROFILE, plan(device, edge))
    assert [(residual.worker, residual.samples) for residual in found] == expected
    assert all(residual.layer == "pool" and abs(residual.relative) > LIMIT for residual in found)


def test_layers_that_a_worker_does_not_compute_are_not_missed() -> None:
    assert missed(PROFILE, plan(0, 8)) == []
