"""The simulation of a program, and its replay without times. Times in seconds.

The runtime executes the very program that ``simulate`` times, so prediction and execution cannot drift apart. This is
the only place that knows time: one queue for each worker, and one for each direction of a link.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile, WorkerProfile
from hiertrain.program.actions import MOST_AHEAD, Action, Op, Program, Role, rows_shown
from hiertrain.program.compiler import compile_plan
from hiertrain.program.timeline import Span, Timeline
from hiertrain.values import InputError

NAMED = 4  # things in the line of an error
# Overlapped iterations are simulated until their period is certain to this share, and no longer than so many.
PERIODIC = 1e-9
MOST_SIMULATED = 64


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
            return times.updated_s(action.first, action.last)


def simulate(program: Program, profile: Profile, network: Network) -> Timeline:
    """The predicted timeline of one iteration; of overlapped ones in the steady state.

    Sends are asynchronous; messages of one pair and direction queue, others do not disturb each other. A message leaves
    when its receiver has begun the iteration that it is sent in: from then on there is a buffer for it.
    Raises InputError when the program deadlocks, a worker was not profiled or a link is missing.
    """

    def duration_s(worker: str, action: Action) -> float:
        return compute_s(profile.worker(worker), action)

    replay = _Replay(program, duration_s, network.link)
    if not program.overlapped:
        spans = replay.iterate(0)
        return Timeline(spans, max((span.end_s for span in spans), default=0.0))
    root = program.root
    ends_s, spans, steady = [0.0], (), None
    for iteration in range(-MOST_AHEAD, MOST_SIMULATED):
        spans = replay.iterate(iteration)
        ends_s.append(replay.clock[root].time_s)
        steady = steady or replay.steady()
        if steady is not None and ends_s[-1] - ends_s[-1 - steady.iterations] >= steady.time_s * (1 - PERIODIC):
            break
    moved = (replace(span, start_s=span.start_s - ends_s[-2], end_s=span.end_s - ends_s[-2]) for span in spans)
    return Timeline(tuple(moved), steady.time_s / steady.iterations if steady else ends_s[-1] - ends_s[-2])


def iteration_s(problem: Problem, plan: Plan) -> float:
    """Seconds of one iteration by a plan; of overlapped ones the period.

    Raises InputError when it does not fit model, workers or links.
    """
    program = compile_plan(plan, problem.profile.chain, problem.execution)
    return simulate(program, problem.profile, problem.network).period_s


def check_messages(program: Program) -> None:
    """Raise InputError when the program cannot finish: a deadlock, or messages whose two sides disagree."""
    replay = _Replay(program, lambda *_: 0.0, None)
    last = MOST_AHEAD if program.overlapped else 0
    for iteration in range(-last, last + 1):
        replay.iterate(iteration, last)
    replay.check_all_read()


@dataclass(slots=True, eq=False)
class _Event:
    """Something that happens in every iteration, and what it had to wait for last: paths of these take the time."""

    name: tuple[str, str | int, str]  # the same in every iteration
    iteration: int
    time_s: float
    cause: "_Event | None"


class _Cycle(NamedTuple):
    """A path of causes that comes back to the same event, so many iterations later."""

    time_s: float
    iterations: int


class _Lane:
    """One direction of a link between two workers: the rule of ``Network`` in bytes, which cancel exactly."""

    def __init__(self, link: Link) -> None:
        self.link, self.credit_bytes, self.since_s = link, link.burst_bytes, -math.inf
        self.left: _Event | None = None

    def send(
        self, ready: _Event, name: tuple[str, int], iteration: int, size_bytes: int
    ) -> tuple[float, _Event, _Event]:
        """When a message that is ready starts to leave, when it has left, and its arrival."""
        link, ready_s, before = self.link, ready.time_s, self.left
        refilled = self.credit_bytes + (ready_s - self.since_s) * link.bandwidth_bps / 8
        idle = before is None or refilled >= link.burst_bytes
        credit = link.burst_bytes if idle else refilled
        self.credit_bytes, self.since_s = credit - size_bytes, ready_s
        late_s = link.transmission_s(size_bytes - credit)
        left = _Event((*name, "left"), iteration, ready_s + late_s, ready if idle else before)
        self.left = left
        cause = left if late_s > 0 else ready
        arrival = _Event((*name, "arrived"), iteration, max(ready_s, left.time_s) + link.latency_s, cause)
        return ready_s + link.transmission_s(max(0.0, -credit)), left, arrival


class _Replay:
    """Performs a program, iteration by iteration.

    ``duration_s`` gives an action's duration, ``link`` the one between two workers; None: messages take no time.
    """

    def __init__(
        self,
        program: Program,
        duration_s: Callable[[str, Action], float],
        link: Callable[[str, str], Link] | None,
    ) -> None:
        self.program, self.duration_s, self.link = program, duration_s, link
        self.clock = {name: _Event((name, "begin", ""), -MOST_AHEAD - 1, 0.0, None) for name in program.actions}
        self.lanes: dict[tuple[str, str], _Lane] = {}
        self.in_flight: dict[tuple[str, str, Role | None], deque[tuple[_Event, int, Action]]] = defaultdict(deque)
        self.events: list[dict[tuple[str, str | int, str], _Event]] = []  # of each iteration

    def iterate(self, iteration: int, last: int | None = None) -> tuple[Span, ...]:
        """One iteration; before the first, at 0, and after the ``last`` one only what is sent ahead between both."""
        self.iteration, self.begun = iteration, dict(self.clock)
        self.events.append({})
        position, spans = dict.fromkeys(self.program.actions, 0), list[Span]()
        moved = True
        while moved:
            moved = False
            for worker, actions in self.program.actions.items():
                while position[worker] < len(actions):
                    action = actions[position[worker]]
                    there = iteration + action.ahead
                    if there >= 0 and (last is None or there <= last):
                        span = self._perform(worker, position[worker], action)
                        if span is None:
                            break
                        spans.append(span)
                    position[worker] += 1
                    moved = True
        self._check_all_done(position)
        return tuple(spans)

    def _event(self, name: tuple[str, str | int, str], time_s: float, cause: _Event) -> _Event:
        event = self.events[-1][name] = _Event(name, self.iteration, time_s, cause)
        return event

    def _perform(self, worker: str, position: int, action: Action) -> Span | None:
        """None where the action cannot be performed yet: a receive has to wait for its send."""
        now = self.clock[worker]
        start_s = end_s = now.time_s
        if action.op == Op.SEND:
            assert action.peer is not None
            arrival = now
            if action.size_bytes and self.link is not None:
                if (worker, action.peer) not in self.lanes:
                    self.lanes[worker, action.peer] = _Lane(self.link(worker, action.peer))
                begun = self.begun[action.peer]
                ready = begun if begun.time_s > now.time_s else now
                name, lane = (worker, position), self.lanes[worker, action.peer]
                start_s, left, arrival = lane.send(ready, name, self.iteration, action.size_bytes)
                self.events[-1] |= {left.name: left, arrival.name: arrival}
            # An empty message costs nothing, but its receiver still waits for the sender.
            self.in_flight[worker, action.peer, action.role].append((arrival, position, action))
            end_s = arrival.time_s
        elif action.op == Op.RECEIVE:
            assert action.peer is not None
            waiting = self.in_flight[action.peer, worker, action.role]
            if not waiting:
                return None
            arrival, place, sent = waiting.popleft()
            if sent.content != action.content:
                raise InputError(
                    f"program: {action.peer}, action {place + 1}, will {sent}, but {worker}, action "
                    f"{position + 1}, will {action}: {_difference(sent, action)}; both sides must agree"
                )
            cause = arrival if arrival.time_s > now.time_s else now
            end_s = cause.time_s
            self.clock[worker] = self._event((worker, position, ""), end_s, cause)
        else:
            end_s = now.time_s + self.duration_s(worker, action)
            self.clock[worker] = self._event((worker, position, ""), end_s, now)
        return Span(worker, position, action, start_s, end_s)

    def steady(self) -> "_Cycle | None":
        """What every iteration waits for in the steady state, once it is certain; None before.

        A path of causes that comes back to the same event of an earlier iteration says that no period is shorter than
        what it takes per iteration. None is longer where no event comes later than that after an event of so many
        iterations before, as long as messages are under way (max-plus algebra: both bound the eigenvalue).
        """
        latest = max(self.events[-1].values(), key=self._later_s, default=None)
        seen = dict[tuple[str, str | int, str], _Event]()
        while latest is not None and latest.name not in seen:
            seen[latest.name], latest = latest, latest.cause
        if latest is None:
            return None
        later = seen[latest.name]
        cycle = _Cycle(later.time_s - latest.time_s, later.iteration - latest.iteration)
        if len(self.events) < 2 * MOST_AHEAD + cycle.iterations:  # the first ones only send ahead
            return None
        for ago in range(1, MOST_AHEAD + 1):
            before = self.events[-ago - cycle.iterations]
            for name, event in self.events[-ago].items():
                if event.time_s - before[name].time_s > cycle.time_s * (1 + PERIODIC):
                    return None
        return cycle

    def _later_s(self, event: _Event) -> float:
        """By how much an event comes later than in the iteration before."""
        before = self.events[-2].get(event.name) if len(self.events) > 1 else None
        return event.time_s - before.time_s if before else 0.0

    def _check_all_done(self, position: Mapping[str, int]) -> None:
        """Raise InputError where a worker waits for what is never sent."""
        stuck = [
            f"{worker} waits at action {position[worker] + 1} ({actions[position[worker]]})"
            for worker, actions in self.program.actions.items()
            if position[worker] < len(actions)
        ]
        if stuck:
            raise InputError(f"program: deadlocks: {_some(stuck)}; each must be sent before its receiver can go on")

    def check_all_read(self) -> None:
        """Raise InputError where a message has no receive."""
        unread = [
            f"{key[0]}, action {place + 1} ({sent})"
            for key, sends in self.in_flight.items()
            for _, place, sent in sends
        ]
        if unread:
            raise InputError(f"program: leaves messages unread: {_some(unread)}; each must have a receive")


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
