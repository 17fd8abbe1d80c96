import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hiertrain.cost.memory import memory_bytes
from hiertrain.problem.chain import Chain, Layer
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Assignment, Plan, check_plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost, LayerTimes, Profile, WorkerProfile
from hiertrain.program.actions import Op, Role
from hiertrain.program.compiler import compile_plan
from hiertrain.values import InputError
from tests.strategies import plans


def plan(batch_size: int, **workers: tuple[str | None, int, int]) -> Plan:
    parts = {name: Assignment(parent=p, depth=m, samples=b) for name, (p, m, b) in workers.items()}
    return Plan(batch_size=batch_size, data_holder="device", workers=parts)


CHAIN = plan(12, device=("edge", 2, 5), edge=("cloud", 3, 4), cloud=(None, 5, 3))
STAR = plan(12, device=("edge", 2, 5), edge=(None, 5, 4), cloud=("edge", 1, 3))


def rows_at_own_depth(plan: Plan, name: str) -> list[int]:
    """The rows that a worker holds after its last layer: those that it sends on, or that reach the loss there."""
    depth = plan.workers[plan.root].depth
    layers = tuple(Layer(name=f"layer{i}", output_bytes=4, parameter_bytes=4) for i in range(depth))
    program = compile_plan(plan, Chain(model="m", sample_bytes=1, layers=layers), Execution.paper())
    last = [
        action
        for action in program.actions.get(name, ())
        if (action.op, action.role) == (Op.SEND, Role.ACTIVATIONS) or (action.op, action.last) == (Op.FORWARD, depth)
    ]
    return [row for action in last for start, end in action.rows for row in range(start, end)]


def test_carried_samples_children_and_rows() -> None:
    assert dict(CHAIN.carried) == {"device": 5, "edge": 9, "cloud": 12}
    assert STAR.children("edge") == ["cloud", "device"]  # the shallowest first
    assert CHAIN.root == "cloud"
    assert list(CHAIN.own_rows("edge")) == [5, 6, 7, 8]
    assert rows_at_own_depth(CHAIN, "cloud") == [9, 10, 11, 5, 6, 7, 8, 0, 1, 2, 3, 4]
    assert rows_at_own_depth(STAR, "edge") == [5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4]


def test_a_child_that_computes_the_loss_keeps_its_rows() -> None:
    data_parallel = plan(4, device=("edge", 5, 3), edge=(None, 5, 1))
    assert rows_at_own_depth(data_parallel, "edge") == [3]


def test_the_data_holder_takes_part_without_computing() -> None:
    alone = plan(4, device=("edge", 0, 0), edge=(None, 5, 4), cloud=("edge", 3, 0))
    assert alone.participants == ("device", "edge")
    assert not alone.active("cloud")  # no samples reach it


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"device": ("edge", 0, 2), "edge": (None, 5, 2)}, "'device' has depth 0 and 2 samples"),
        ({"device": ("edge", 6, 2), "edge": (None, 5, 2)}, "'device' has depth 6, its parent 'edge' has 5"),
        ({"device": ("moon", 1, 2), "edge": (None, 5, 2)}, "parent 'moon', which is not a worker"),
        (
            {"device": (None, 5, 4), "edge": ("cloud", 1, 0), "cloud": ("edge", 1, 0)},
            "edge -> cloud -> edge form a cycle",
        ),
        ({"device": (None, 5, 2), "edge": (None, 5, 2)}, "device, edge; exactly one worker is the root"),
        ({"device": (None, 5, 5)}, "add up to 5; they must add up to the batch size 4"),
    ],
)
def test_a_plan_that_breaks_a_rule_is_refused(workers: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan(4, **workers)


def test_a_plan_must_fit_the_chain() -> None:
    chain = Chain(
        model="m", sample_bytes=1, layers=tuple(Layer(name=n, output_bytes=1, parameter_bytes=1) for n in "abcd")
    )
    with pytest.raises(InputError, match="'device' has depth 5; m has only 4 layers"):
        check_plan(plan(4, device=(None, 5, 4)), chain)
    with pytest.raises(InputError, match="the root 'device' has depth 3; the root computes all 4 layers"):
        check_plan(plan(4, device=(None, 3, 4)), chain)


def test_a_plan_must_give_each_layer_samples_enough() -> None:
    """BatchNorm over single values takes two samples; before it, one is enough."""
    names = {"conv": 1, "norm": 2, "loss": 1}
    layers = tuple(Layer(name=n, output_bytes=1, parameter_bytes=1, least_samples=s) for n, s in names.items())
    chain = Chain(model="m", sample_bytes=1, layers=layers)
    with pytest.raises(
        InputError, match="'device' computes norm, layer 2 of m, for 1 sample; the layer takes at least 2"
    ):
        check_plan(plan(8, device=("edge", 3, 1), edge=(None, 3, 7)), chain)
    for device, edge in (((1, 1), 7), ((3, 2), 6), ((2, 8), 0), ((0, 0), 8)):  # merged before, enough, all, none
        check_plan(plan(8, device=("edge", *device), edge=(None, 3, edge)), chain)


LAYERS = tuple(Layer(name=n, output_bytes=8, parameter_bytes=100, activation_bytes=10) for n in "abcde")
COST = LayerCost(fixed_s=0, per_sample_s=1)
TIMES = WorkerProfile(layers=(LayerTimes(forward=COST, backward=COST, update_s=0),) * 5)
WORKERS = ("device", "edge", "cloud")
PROFILE = Profile(model="m", sample_bytes=4, layers=LAYERS, workers=dict.fromkeys(WORKERS, TIMES))
GREEDY = Profile(
    model="m",
    sample_bytes=4,
    layers=tuple(layer.model_copy(update={"least_samples": 3 if layer.name == "c" else 1}) for layer in LAYERS),
    workers=PROFILE.workers,
)
LINKS = tuple(Link(source=a, target=b, bandwidth_mbps=1, latency_ms=0) for a in WORKERS for b in WORKERS if a != b)

EDGE_LINKS = tuple(link for link in LINKS if "edge" in (link.source, link.target))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch size 0: must be at least 1"),
        ({"profile": GREEDY, "batch_size": 2}, "batch size 2: must be at least 3, which layer 'c' takes"),
        ({"data_holder": "phone"}, "data holder 'phone' is not in the profile; it has cloud, device, edge"),
        ({"root": "phone"}, "worker 'phone' is not in the profile"),
        ({"root": "edge", "excluded": frozenset({"edge"})}, "root 'edge' is excluded"),
        ({"excluded": frozenset(WORKERS)}, "at least one worker must be left"),
        ({"samples_stay": True, "excluded": frozenset({"device"})}, "raw samples must stay on 'device'"),
        ({"memory_limit_bytes": {"edge": 0}}, "memory limit of 'edge' in bytes 0: must be at least 1"),
        (
            {"execution": Execution(sample_encoding="zlib")},
            "profile of m: compressed_sample_bytes is not there; .* hiertrain profile --dataset NAME records it",
        ),
        ({"network": Network(links=LINKS[1:])}, "no link from 'device' to 'edge'"),
        ({"network": Network(links=())}, "no links join 'cloud' to 'device', which has the raw samples"),
        ({"network": Network(links=EDGE_LINKS), "excluded": frozenset({"edge"})}, "no links join 'cloud' to 'device'"),
    ],
)
def test_a_problem_whose_parts_do_not_fit_is_refused(fields: dict, message: str) -> None:
    parts = {"profile": PROFILE, "network": Network(links=LINKS), "batch_size": 12, "data_holder": "device", **fields}
    with pytest.raises(InputError, match=message):
        Problem(**parts)


def test_a_pair_without_a_link_is_known() -> None:
    assert Problem(PROFILE, Network(links=LINKS), 12, "device").unlinked == ()
    assert Problem(PROFILE, Network(links=EDGE_LINKS), 12, "device").unlinked == (("device", "cloud"),)
    relayed = Network(links=EDGE_LINKS, through={"device": "edge"})
    assert Problem(PROFILE, relayed, 12, "device", excluded=frozenset({"edge"})).unlinked == ()


def test_memory_and_samples_per_layer() -> None:
    problem = Problem(PROFILE, Network(links=LINKS), 12, "device")
    assert [CHAIN.samples_at("edge", layer) for layer in range(1, 6)] == [4, 4, 9, 0, 0]
    # Raw samples; activations and gradients at cuts; gradients of layers, which weights need no more room than.
    edge, cloud = 4 * 4 + 2 * 8 * (5 + 9) + 200 + 300, 4 * 3 + 2 * 8 * 9 + 300
    assert memory_bytes(problem, CHAIN, "edge") == 2 * 300 + 10 * (4 + 4 + 9) + edge
    assert memory_bytes(problem, CHAIN, "cloud") == 4 * 500 + 10 * (3 + 3 + 3 + 12 + 12) + cloud
    ahead = Problem(PROFILE, Network(links=LINKS), 12, "device", Execution(prefetch=True))
    assert memory_bytes(ahead, CHAIN, "cloud") - memory_bytes(problem, CHAIN, "cloud") == 2 * 4 * 3


def test_memory_where_layers_have_owners() -> None:
    problem = Problem(PROFILE, Network(links=LINKS), 12, "device", Execution(owners=True))
    assert memory_bytes(problem, CHAIN, "cloud") == 4 * 500 + 10 * (3 + 3 + 3 + 12 + 12) + 4 * 3 + 2 * 8 * 9 + 300
    stages = plan(12, device=("edge", 2, 5), edge=("cloud", 3, 7), cloud=(None, 5, 0))
    assert memory_bytes(problem, stages, "cloud") == 4 * 200 + 10 * (12 + 12) + 2 * 8 * 12
    assert memory_bytes(problem, stages, "edge") == 4 * 300 + 10 * (7 + 7 + 12) + 4 * 7 + 2 * 8 * (5 + 12) + 200
    assert memory_bytes(problem, stages, "device") == 2 * 200 + 10 * (5 + 5) + 4 * 7 + 2 * 8 * 5 + 200


@given(st.data())
def test_what_a_plan_knows_of_itself_is_what_its_tree_says(data: st.DataObject) -> None:
    """Recursions over the definitions, on any tree."""
    names = tuple(f"worker-{number}" for number in range(data.draw(st.integers(1, 7))))
    drawn = data.draw(plans(names=names, depth=4, batch_size=data.draw(st.integers(1, 9))))

    def below(name: str) -> list[str]:
        return [child for child, part in drawn.workers.items() if part.parent == name]

    def carried(name: str) -> int:
        return drawn.workers[name].samples + sum(carried(child) for child in below(name))

    def rows(name: str) -> list[int]:
        return [*drawn.own_rows(name), *(row for child in children(name) if depth(child) < 4 for row in rows(child))]

    def children(name: str) -> list[str]:
        return sorted((child for child in below(name) if carried(child)), key=lambda child: (depth(child), child))

    def depth(name: str) -> int:
        return drawn.workers[name].depth

    assert [row for name in names for row in drawn.own_rows(name)] == list(range(drawn.batch_size))
    for name in names:
        assert (drawn.carried[name], drawn.children(name)) == (carried(name), children(name))
        assert len(drawn.own_rows(name)) == drawn.workers[name].samples
        assert rows_at_own_depth(drawn, name) == rows(name)
        for layer in range(1, 6):
            taken_over = sum(carried(child) for child in children(name) if depth(child) < layer)
            assert drawn.samples_at(name, layer) == (layer <= depth(name)) * (drawn.workers[name].samples + taken_over)
    places = {name: place for place, name in enumerate(drawn.top_down)}
    assert set(places) == {name for name in names if drawn.active(name)}
    assert all(name == drawn.root or places[drawn.workers[name].parent or ""] < places[name] for name in places)
