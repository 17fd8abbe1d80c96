"""The simulation of a program, and its replay without times. Times in seconds.

The runtime executes the very program that ``simulate`` times, so prediction and execution cannot drift apart. This is
the only place that knows time: one queue for each worker, and one for each direction of a link.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from hiertrain.problem.network import Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile, WorkerProfile
from hiertrain.program.actions import Action, Op, Program, Role, rows_shown
from hiertrain.program.compiler import compile_plan
from hiertrain.program.timeline import Span, Timeline
from hiertrain.values import InputError

NAMED = 4  # things in the line of an error


def receipts(program: Program) -> dict[tuple[str, int], tuple[str, int]]:
    """The receive that takes each send's message: (worker, position) by (worker, position). Same roles keep order."""
    receives: dict[tuple[str, str, Role | None], list[tuple[str, int]]] = defaultdict(list)
    for worker, actions in program.actions.items():
        for position, action in enumerate(actions):
            if action.op == Op.RECEIVE and action.peer is not None:
                receives[action.peer, worker, action.role].append((worker, position))
    found = {}
    for worker, actions in program.actions.items():
        for position, action in enumerate(actions):
            if action.op == Op.SEND and action.peer is not None:
                found[worker, position] = receives[worker, action.peer, action.role].pop(0)
    return found


def compute_s(times: WorkerProfile, action: Action) -> float:
    """Seconds of a computing action on a worker with these times."""
    match action.op:
        case Op.FORWARD:
            return times.forward_s(action.first, action.last, action.samples)
        case Op.BACKWARD:
            return times.backward_s(action.first, action.last, action.samples)
        case _:
            return times.update_s


def simulate(program: Program, profile: Profile, network: Network) -> Timeline:
    """The predicted timeline of one iteration.

    Sends are asynchronous; messages of one pair and direction queue, others do not disturb each other.
    Raises InputError when the program deadlocks, a worker was not profiled or a link is missing.
    """
    # The bytes that each link would let pass at once, and since when; negative: bytes that have still to leave.
    credit_bytes: dict[tuple[str, str], tuple[float, float]] = {}

    def message_s(source: str, target: str, ready_s: float, size_bytes: int) -> tuple[float, float]:
        """The rule of ``Network`` in bytes, which cancel exactly where times would not."""
        link = network.link(source, target)
        left, since_s = credit_bytes.get((source, target), (link.burst_bytes, ready_s))
        credit = min(link.burst_bytes, left + (ready_s - since_s) * link.bandwidth_bps / 8)
        credit_bytes[source, target] = credit - size_bytes, ready_s
        start_s = ready_s + link.transmission_s(max(0.0, -credit))
        return start_s, ready_s + link.transmission_s(max(0.0, size_bytes - credit)) + link.latency_s

    return _replay(program, lambda worker, action: compute_s(profile.worker(worker), action), message_s)


def iteration_s(problem: Problem, plan: Plan) -> float:
    """Seconds of one iteration by a plan. Raises InputError when it does not fit model, workers or links."""
    program = compile_plan(plan, problem.profile.chain, problem.execution)
    return simulate(program, problem.profile, problem.network).makespan_s


def check_messages(program: Program) -> None:
    """Raise InputError when the program cannot finish: a deadlock, or messages whose two sides disagree."""
    _replay(program, lambda *_: 0.0, lambda *_: (0.0, 0.0))


def _replay(
    program: Program,
    duration_s: Callable[[str, Action], float],
    message_s: Callable[[str, str, float, int], tuple[float, float]],
) -> Timeline:
    """Perform the program.

    ``duration_s`` gives an action's duration; ``message_s`` when a message of so many bytes, ready at a time, starts to
    leave and when it arrives. It is called in the order in which each worker sends.
    """
    clock = dict.fromkeys(program.actions, 0.0)
    position = dict.fromkeys(program.actions, 0)
    in_flight: dict[tuple[str, str, Role | None], deque[tuple[float, int, Action]]] = defaultdict(deque)
    spans: list[Span] = []

    def perform(worker: str, action: Action) -> bool:
        """Whether the action could be performed: a receive has to wait for its send."""
        start = now = clock[worker]
        if action.op == Op.SEND:
            assert action.peer is not None
            end = start
            if action.size_bytes:  # an empty message costs nothing, but its receiver still waits for the sender
                start, end = message_s(worker, action.peer, now, action.size_bytes)
            in_flight[worker, action.peer, action.role].append((end, position[worker], action))
        elif action.op == Op.RECEIVE:
            assert action.peer is not None
            waiting = in_flight[action.peer, worker, action.role]
            if not waiting:
                return False
            arrival, place, sent = waiting.popleft()
            if sent.content != action.content:
                raise InputError(
                    f"program: {action.peer}, action {place + 1}, will {sent}, but {worker}, action "
                    f"{position[worker] + 1}, will {action}: {_difference(sent, action)}; both sides must agree"
                )
            end = clock[worker] = max(now, arrival)
        else:
            end = clock[worker] = now + duration_s(worker, action)
        spans.append(Span(worker, position[worker], action, start, end))
        return True

    moved = True
    while moved:
        moved = False
        for worker, actions in program.actions.items():
            while position[worker] < len(actions) and perform(worker, actions[position[worker]]):
                position[worker] += 1
                moved = True
    stuck = [
        f"{worker} waits at action {position[worker] + 1} ({actions[position[worker]]})"
        for worker, actions in program.actions.items()
        if position[worker] < len(actions)
    ]
    if stuck:
        raise InputError(f"program: deadlocks: {_some(stuck)}; each must be sent before its receiver can go on")
    unread = [f"{key[0]}, action {place + 1} ({sent})" for key, sends in in_flight.items() for _, place, sent in sends]
    if unread:
        raise InputError(f"program: leaves messages unread: {_some(unread)}; each must have a receive")
    return Timeline(tuple(spans))


def _some(items: Sequence[str]) -> str:
    """The first of them, and how many others there are."""
    more = f"; and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return "; ".join(items[:NAMED]) + more


def _difference(sent: Action, received: Action) -> str:
    """In what the two sides of a message disagree, with both values."""
    sides = [
        {
            "layers": f"{action.first}..{action.last}",
            "rows": rows_shown(action.rows),
            "encoding": action.encoding,
            "size_bytes": action.size_bytes,
        }
        for action in (sent, received)
    ]
    return ", ".join(
        f"{name} {one} against {sides[1][name]}" for name, one in sides[0].items() if one != sides[1][name]
    )
