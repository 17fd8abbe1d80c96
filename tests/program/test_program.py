import pytest

from hiertrain.problem.chain import Chain, Layer
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.profile import LayerCost, LayerTimes, Profile, WorkerProfile
from hiertrain.program.actions import Action, Op, Program, Role
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import check_messages, simulate
from hiertrain.values import InputError

# Three layers of 1 ms and 2 ms per sample forward and backward; activations of 1000 bytes, parameters of 500.
LAYERS = (
    Layer(name="a", output_bytes=1000, parameter_bytes=500),
    Layer(name="b", output_bytes=1000, parameter_bytes=500),
    Layer(name="loss", output_bytes=0, parameter_bytes=0),
)
TIMES = LayerTimes(
    forward=LayerCost(fixed_s=0, per_sample_s=1e-3), backward=LayerCost(fixed_s=0, per_sample_s=2e-3), update_s=1e-3
)
WORKER = WorkerProfile(layers=(TIMES,) * 3)
PROFILE = Profile(model="m", sample_bytes=100, layers=LAYERS, workers={"device": WORKER, "edge": WORKER})
# 1 ms per 1000 bytes, and 1 ms of latency.
NETWORK = Network(
    links=(
        Link(source="device", target="edge", bandwidth_mbps=8, latency_ms=1),
        Link(source="edge", target="device", bandwidth_mbps=8, latency_ms=1),
    )
)
PLAN = Plan(
    batch_size=5,
    data_holder="device",
    workers={
        "device": Assignment(parent="edge", depth=1, samples=2),
        "edge": Assignment(parent=None, depth=3, samples=3),
    },
)

JALAD = Execution(activation_encoding="uint8")
CUT = (Role.ACTIVATIONS, Role.ACTIVATION_GRADIENTS)


def program_of(actions: dict[str, tuple[Action, ...]]) -> Program:
    return Program(batch_size=1, data_holder="device", actions=actions)


def test_a_split_timed_by_hand() -> None:
    program = compile_plan(PLAN, PROFILE.chain, Execution.paper())
    ends = {
        (span.worker, span.action.label, span.action.last): (span.start_s * 1e3, span.end_s * 1e3)
        for span in simulate(program, PROFILE, NETWORK).spans
    }

    def at(start: float, end: float) -> object:
        return pytest.approx((start, end))

    # 300 bytes of samples: 0.3 ms; the device's 2 samples meanwhile take 2 ms through layer a.
    assert ends["device", "send samples", 0] == at(0, 1.3)
    assert ends["device", "forward", 1] == at(0, 2)
    assert ends["device", "send activations", 1] == at(2, 5)
    # The edge's 3 samples: 1.3 to 4.3; it waits until 5, then takes 5 samples through two layers, there and back.
    assert ends["edge", "forward", 1] == at(1.3, 4.3)
    assert ends["edge", "receive activations", 1] == at(4.3, 5)
    assert ends["edge", "forward", 3] == at(5, 15)
    assert ends["edge", "backward", 3] == at(15, 35)
    # 2000 bytes of gradients take 3 ms, while the edge goes on with its own 3 samples.
    assert ends["edge", "send activation gradients", 1] == at(35, 38)
    assert ends["edge", "backward", 1] == at(35, 41)
    assert ends["device", "backward", 1] == at(38, 42)
    # 500 bytes of parameters: 1.5 ms up; update 3 layers; 1.5 ms down.
    assert ends["device", "send gradients", 1] == at(42, 43.5)
    assert ends["edge", "update", 3] == at(43.5, 46.5)
    assert ends["edge", "send weights", 1] == at(46.5, 48)
    assert ends["device", "receive weights", 1] == at(42, 48)


def test_activations_of_8_bits_timed_by_hand() -> None:
    """2 samples of 1000 bytes as float32: 500 bytes and the 8 of their range take 1.508 ms, there and back."""
    spans = simulate(compile_plan(PLAN, PROFILE.chain, JALAD), PROFILE, NETWORK).spans
    ends = {(span.worker, span.action.label): (span.start_s * 1e3, span.end_s * 1e3) for span in spans}
    assert ends["device", "send activations"] == pytest.approx((2, 3.508))
    # The edge's own 3 samples take until 4.3 ms; 5 samples through two layers, there and back, take 30 ms.
    assert ends["edge", "receive activations"] == pytest.approx((4.3, 4.3))
    assert ends["edge", "send activation gradients"] == pytest.approx((34.3, 35.808))
    assert ends["device", "backward"] == pytest.approx((35.808, 39.808))
    # Gradients of the 500 bytes of parameters stay float32.
    assert ends["device", "send gradients"] == pytest.approx((39.808, 41.308))


def test_half_precision_timed_by_hand() -> None:
    """As with 8 bits, but 1000 bytes of activations take 2 ms, there and back, and 250 of parameters 1.25 ms."""
    half = Execution(activation_encoding="float16", parameter_encoding="bfloat16")
    spans = simulate(compile_plan(PLAN, PROFILE.chain, half), PROFILE, NETWORK).spans
    ends = {(span.worker, span.action.label): (span.start_s * 1e3, span.end_s * 1e3) for span in spans}
    assert ends["device", "send activations"] == pytest.approx((2, 4))
    assert ends["edge", "send activation gradients"] == pytest.approx((34.3, 36.3))
    assert ends["device", "send gradients"] == pytest.approx((40.3, 41.55))


def test_compressed_samples_are_predicted_by_their_mean() -> None:
    profile = PROFILE.with_compressed_samples(40)
    assert profile.chain.compressed_sample_bytes == 40
    assert PROFILE.chain.compressed_sample_bytes is None
    zlib = Execution(sample_encoding="zlib")
    (sent,) = (action for action in compile_plan(PLAN, profile.chain, zlib).actions["device"] if action.compressed)
    assert (sent.role, sent.size_bytes) == (Role.SAMPLES, 3 * 40)
    with pytest.raises(InputError, match="profile of m: compressed_sample_bytes is not there"):
        compile_plan(PLAN, PROFILE.chain, zlib)


@pytest.mark.parametrize(("output_bytes", "samples", "size_bytes"), [(1000, 3, 758), (4, 1, 9), (0, 3, 0)])
def test_sizes_of_activations_of_8_bits(output_bytes: int, samples: int, size_bytes: int) -> None:
    layers = LAYERS[0].model_copy(update={"output_bytes": output_bytes}), *LAYERS[1:]
    parts = {
        "device": Assignment(parent="edge", depth=1, samples=samples),
        "edge": Assignment(parent=None, depth=3, samples=0),
    }
    plan = Plan(batch_size=samples, data_holder="device", workers=parts)
    for execution, expected in ((JALAD, size_bytes), (Execution.paper(), output_bytes * samples)):
        program = compile_plan(plan, Chain(model="m", sample_bytes=100, layers=layers), execution)
        sizes = {action.size_bytes for action in program.actions["device"] if action.role in CUT}
        assert sizes == {expected}


def sent_at_ms(burst_bytes: float, *sizes: int) -> list[tuple[float, float]]:
    """The spans of the device's messages to the edge, one before and all others after 1 sample's layer of 1 ms."""
    link = Link(source="device", target="edge", bandwidth_mbps=8, latency_ms=1, burst_bytes=burst_bytes)
    send = [Action(op=Op.SEND, role=Role.SAMPLES, peer="edge", rows=((0, 1),), size_bytes=size) for size in sizes]
    receive = tuple(
        Action(op=Op.RECEIVE, role=Role.SAMPLES, peer="device", rows=((0, 1),), size_bytes=size) for size in sizes
    )
    compute = Action(op=Op.FORWARD, first=1, last=1, rows=((0, 1),))
    program = program_of({"device": (send[0], compute, *send[1:]), "edge": receive})
    spans = simulate(program, PROFILE, Network(links=(link,))).spans
    return [(span.start_s * 1e3, span.end_s * 1e3) for span in spans if span.action.label == "send samples"]


@pytest.mark.parametrize(
    ("burst_bytes", "sizes", "spans"),
    [
        (0, (500, 2000), [(0, 1.5), (1, 4)]),  # the link is free after 0.5 ms
        (0, (2000, 500), [(0, 3), (2, 3.5)]),  # the second message waits until 2 ms
        (800, (500, 2000), [(0, 1), (1, 3.2)]),  # the first is within the credit, which 1 ms fills up again
        (800, (2000, 500), [(0, 2.2), (1.2, 2.7)]),  # 1200 bytes leave until 1.2 ms; no pause, no credit
        (800, (1300, 500), [(0, 1.5), (1, 2)]),  # a pause of 0.5 ms gives back 500 bytes
        (800, (1300, 700), [(0, 1.5), (1, 2.2)]),  # the same, 200 bytes too few
        (800, (500, 800, 100), [(0, 1), (1, 2), (1, 2.1)]),  # two back to back: the second finds no credit
        (800, (500, 0, 100), [(0, 1), (1, 1), (1, 2)]),  # an empty message costs nothing
    ],
)
def test_a_burst_after_a_pause_by_hand(
    burst_bytes: float, sizes: tuple[int, ...], spans: list[tuple[float, float]]
) -> None:
    """8 Mbit/s are 1000 bytes per ms; the credit of 800 bytes is worth 0.8 ms."""
    assert sent_at_ms(burst_bytes, *sizes) == [pytest.approx(span) for span in spans]


def test_a_worker_that_only_holds_the_data_only_sends() -> None:
    parts = {
        "device": Assignment(parent="edge", depth=0, samples=0),
        "edge": Assignment(parent=None, depth=3, samples=5),
    }
    plan = Plan(batch_size=5, data_holder="device", workers=parts)
    program = compile_plan(plan, PROFILE.chain, Execution.paper())
    assert [action.label for action in program.actions["device"]] == ["send samples"]
    assert [str(action) for action in program.actions["edge"]] == [
        "receive samples of 5 samples from device",
        "forward layers 1..3 of 5 samples",
        "backward layers 1..3 of 5 samples",
        "update layers 1..3",
    ]


def test_a_deadlock_is_found_before_the_run() -> None:
    wait = Action(op=Op.RECEIVE, role=Role.WEIGHTS, peer="edge", first=1, last=1, size_bytes=4)
    with pytest.raises(
        InputError, match=r"deadlocks: device waits at action 1 \(receive weights layers 1..1 from edge\)"
    ):
        check_messages(program_of({"device": (wait,), "edge": ()}))


def test_two_sides_that_disagree_are_found_before_the_run() -> None:
    send = Action(op=Op.SEND, role=Role.WEIGHTS, peer="device", first=1, last=2, size_bytes=8)
    wait = Action(op=Op.RECEIVE, role=Role.WEIGHTS, peer="edge", first=1, last=1, size_bytes=4)
    with pytest.raises(
        InputError, match=r"edge, action 1, will send weights .*: layers 1\.\.2 .*, size_bytes 8 against 4"
    ):
        check_messages(program_of({"device": (wait,), "edge": (send,)}))
    with pytest.raises(
        InputError, match=r"leaves messages unread: edge, action 1 \(send weights layers 1\.\.2 to device"
    ):
        check_messages(program_of({"device": (), "edge": (send,)}))


def test_a_plan_that_does_not_fit_is_not_compiled() -> None:
    chain = Chain(model="m", sample_bytes=1, layers=LAYERS[:2])
    with pytest.raises(InputError, match="only 2 layers"):
        compile_plan(PLAN, chain, Execution.paper())
