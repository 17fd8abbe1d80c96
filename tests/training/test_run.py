"""What a run left behind: which iterations count, which are kept, and where a message ends that was sent ahead."""

import pytest

from hiertrain.control.answers import Iteration
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.program.actions import MOST_AHEAD, Op, Program, Role
from hiertrain.program.compiler import compile_plan
from hiertrain.training.run import TOGETHER, Snapshots, TrainingRun, counting, keep_iteration, steady
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model

# The edge updates; the device has samples and layers of its own.
PLAN = Plan(
    batch_size=12,
    data_holder="device",
    workers={
        "device": Assignment(parent="edge", depth=4, samples=5),
        "edge": Assignment(parent=None, depth=13, samples=7),
    },
)
APART, OVERLAPPED = (
    compile_plan(PLAN, build_model("lenet5").chain, Execution(prefetch=prefetch)) for prefetch in (False, True)
)


def run_of(program: Program, ends_s: list[float], waited_s: float = 0.5) -> TrainingRun:
    """One whose iterations end at these times on the edge and 0.25 s later on the device, which starts first, at 10 s.

    An iteration starts where the one before ended; every action takes its first 0.1 s, a receive ``waited_s``.
    """
    done: dict[str, list[Iteration]] = {}
    for name, first_s, delay_s in (("device", 10.0, 0.25), ("edge", 10.5, 0.0)):
        start_s = first_s
        for end_s in ends_s:
            lasting_s = [waited_s if action.op == Op.RECEIVE else 0.1 for action in program.actions[name]]
            spans = tuple((start_s, start_s + own_s) for own_s in lasting_s)
            keep_iteration(
                done.setdefault(name, []),
                Iteration(loss=1, started_s=start_s, ended_s=end_s + delay_s, spans=spans, late_s=0),
            )
            start_s = end_s + delay_s
    return TrainingRun(program, done, dict.fromkeys(done, ()), {})


def test_the_time_of_an_overlapped_iteration_is_between_two_ends_on_the_worker_that_updates() -> None:
    ends_s = [15.0, 16.0, 17.5, 18.5, 18.75, 19.0]
    run = run_of(OVERLAPPED, ends_s)
    assert run.iteration_s == (5, 1, 1.5, 1, 0.25, 0.25)
    assert run.elapsed_s == tuple(end_s - 10 for end_s in ends_s)
    assert run.counted == range(1, 4)  # neither the first nor those for whose sake no coming samples travel
    assert run.steady_s == (1, 1.5, 1)
    apart = run_of(APART, ends_s)
    assert apart.iteration_s == (5.25, 1.25, 1.75, 1.25, 0.5, 0.5)  # from the edge's start to the device's end
    assert apart.elapsed_s == tuple(end_s + 0.25 - 10 for end_s in ends_s)
    assert apart.counted == range(1, 6)


@pytest.mark.parametrize("overlapped", [False, True])
def test_of_few_iterations_none_counts(overlapped: bool) -> None:
    few = 1 + MOST_AHEAD * overlapped
    assert not counting(few, overlapped)
    assert not steady([1.0] * few, overlapped)
    assert steady(list(range(few + 1)), overlapped) == [1]
    ends_s = [11.0 + number for number in range(few)]
    run = run_of(OVERLAPPED if overlapped else APART, ends_s)
    assert run.steady_s == run.iteration_s
    assert run.typical(3) == range(few)


def test_what_is_sent_ahead_ends_where_a_later_iteration_waited_for_it() -> None:
    ends_s = [15.0, 16.0, 17.0, 18.0, 19.0, 20.0]
    run = run_of(OVERLAPPED, ends_s)
    for iteration, since_s in enumerate([10.0, *ends_s[:-1]]):
        timeline = run.timeline(iteration)
        assert timeline.period_s == run.iteration_s[iteration]
        (sent,) = (span for span in timeline.spans if (span.action.op, span.action.role) == (Op.SEND, Role.SAMPLES))
        assert sent.action.ahead == 2
        if iteration < 4:  # iteration k + 2 starts on the edge when k + 1 has ended, and waits for half a second
            assert sent.end_s == pytest.approx(ends_s[iteration + 1] + 0.5 - since_s)
        else:
            assert sent.end_s == pytest.approx(sent.start_s + 0.1)
    (sent,) = (
        span
        for span in run_of(OVERLAPPED, [15.0, 16.0, 17.0, 18.0], waited_s=0.0).timeline(1).spans
        if span.action.ahead
    )
    assert sent.end_s == pytest.approx(sent.start_s + 0.1)  # nobody waited for it: as its sender reported it


def test_typical_iterations_take_the_median_of_so_many_in_a_row() -> None:
    ends_s = [15.0]
    for time_s in (9, 1, 2, 3, 4, 5, 8, 8, 8):
        ends_s.append(ends_s[-1] + time_s)
    run = run_of(OVERLAPPED, ends_s)
    assert run.counted == range(1, 8)
    assert run.typical() == range(5, 6)  # of 9, 1, 2, 3, 4, 5, 8
    assert run.typical(3) == range(1, 4)  # of 12, 6, 9, 12, 17: the later of equal ones comes after it
    assert run.typical(100) == run.counted


def test_a_long_run_keeps_the_spans_of_a_bounded_number_of_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiertrain.training.run.MOST_SPANS", 4 * TOGETHER)
    done: dict[str, list[Iteration]] = {name: [] for name in APART.actions}
    for number in range(1, 201):
        for name, own in done.items():
            spans = tuple((number + 0.1, number + 0.2) for _ in APART.actions[name])
            ended_s = number + number / 1000
            keep_iteration(own, Iteration(loss=number, started_s=number, ended_s=ended_s, spans=spans, late_s=0.0))
            assert sum(bool(iteration.spans) for iteration in own) <= 4 * TOGETHER
    run = TrainingRun(APART, done, dict.fromkeys(done, ()), {})
    # Spread evenly, and consecutive ones.
    assert run.with_spans == (*range(8), *range(64, 72), *range(128, 136), *range(192, 200))
    assert run.losses == tuple(2.0 * number for number in range(1, 201))
    assert len(run.iteration_s) == 200
    assert run.typical() == range(128, 129)
    assert run.typical(3) == range(128, 131)
    assert run.timeline(128).period_s == pytest.approx(0.129)
    with pytest.raises(InputError, match="iteration 136: its spans were not kept"):
        run.timeline(136)


def test_weights_are_kept_on_disk() -> None:
    snapshots = Snapshots()
    for iteration in (2, 4, 6):
        snapshots.keep(iteration, bytes([iteration]) * iteration)
    assert list(snapshots) == [2, 4, 6]
    assert snapshots[4] == b"\4\4\4\4"
    assert dict(snapshots) == {2: b"\2\2", 4: b"\4" * 4, 6: b"\6" * 6}
    with pytest.raises(KeyError):
        snapshots[3]
