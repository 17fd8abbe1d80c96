"""The plan lowered to an ordered list of actions per worker, and the simulation of those lists.

The runtime executes the very program that ``simulate`` times, so prediction and execution cannot drift apart.
One iteration (paper, hierarchical training stage): input, forward, backward, gradients up the tree, update at the
root, weights down the tree.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from hiertrain.problem.chain import Chain
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Network
from hiertrain.problem.plan import Plan, check_plan
from hiertrain.problem.profile import Profile, WorkerProfile
from hiertrain.values import InputError


class Kind(StrEnum):
    """What an action does."""

    SEND_SAMPLES = "send samples"
    RECEIVE_SAMPLES = "receive samples"
    FORWARD = "forward"
    SEND_ACTIVATIONS = "send activations"
    RECEIVE_ACTIVATIONS = "receive activations"
    BACKWARD = "backward"
    SEND_ACTIVATION_GRADIENTS = "send activation gradients"
    RECEIVE_ACTIVATION_GRADIENTS = "receive activation gradients"
    SEND_GRADIENTS = "send gradients"
    RECEIVE_GRADIENTS = "receive gradients"
    UPDATE = "update"
    SEND_WEIGHTS = "send weights"
    RECEIVE_WEIGHTS = "receive weights"


# The send that each receive waits for.
SEND_OF = {
    Kind.RECEIVE_SAMPLES: Kind.SEND_SAMPLES,
    Kind.RECEIVE_ACTIVATIONS: Kind.SEND_ACTIVATIONS,
    Kind.RECEIVE_ACTIVATION_GRADIENTS: Kind.SEND_ACTIVATION_GRADIENTS,
    Kind.RECEIVE_GRADIENTS: Kind.SEND_GRADIENTS,
    Kind.RECEIVE_WEIGHTS: Kind.SEND_WEIGHTS,
}
# The backward pass is the forward pass, reversed, with each step turned round.
BACKWARD_OF = {
    Kind.FORWARD: Kind.BACKWARD,
    Kind.RECEIVE_ACTIVATIONS: Kind.SEND_ACTIVATION_GRADIENTS,
    Kind.SEND_ACTIVATIONS: Kind.RECEIVE_ACTIVATION_GRADIENTS,
}
RECEIVES = frozenset(SEND_OF)
SENDS = frozenset(SEND_OF.values())


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a worker's program."""

    kind: Kind
    peer: str | None = None  # the other side of a message
    first: int = 0  # layers first..last (1-based, inclusive) that are computed, or whose parameters travel;
    last: int = 0  # for activations and their gradients, last is the depth of the cut
    samples: int = 0
    size_bytes: int = 0  # of the message

    def __str__(self) -> str:
        layers = f" layers {self.first}..{self.last}" if self.first else (f" at depth {self.last}" if self.last else "")
        peer = f" {'from' if self.kind in RECEIVES else 'to'} {self.peer}" if self.peer else ""
        samples = f" of {self.samples} samples" if self.samples else ""
        return f"{self.kind}{layers}{samples}{peer}"


@dataclass(frozen=True)
class Program:
    """One iteration: the actions of every participant, in the order in which it performs them."""

    actions: Mapping[str, tuple[Action, ...]]


@dataclass(frozen=True, slots=True)
class Span:
    """One performed action. A send lasts from leaving to arrival, a receive from waiting to arrival; seconds."""

    worker: str
    position: int  # in the worker's program, from 0
    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """The spans of one iteration, predicted or measured; the iteration starts at 0."""

    spans: tuple[Span, ...]

    @property
    def makespan_s(self) -> float:
        return max((span.end_s for span in self.spans), default=0.0)


def compile_plan(plan: Plan, chain: Chain, execution: Execution) -> Program:
    """Lower a plan to a program. Raises InputError when the plan does not fit the chain."""
    check_plan(plan, chain)
    return Program({worker: tuple(_actions(plan, chain, execution, worker)) for worker in plan.participants})


def _actions(plan: Plan, chain: Chain, execution: Execution, worker: str) -> list[Action]:
    """The program of one worker: input, forward, backward, gradients, update, weights."""
    actions = _input(plan, execution.encoded_bytes(chain.sample_bytes), worker)
    if plan.active(worker):
        forward = _forward(plan, chain, execution, worker)
        backward = [replace(action, kind=BACKWARD_OF[action.kind]) for action in reversed(forward)]
        actions += [*forward, *backward, *_update(plan, chain, worker)]
    return actions


def _input(plan: Plan, sample_bytes: int, worker: str) -> list[Action]:
    """Raw samples from the data holder to every worker that starts some."""
    if worker == plan.data_holder:
        kind, samples_of = (
            Kind.SEND_SAMPLES,
            {peer: part.samples for peer, part in plan.workers.items() if peer != worker},
        )
    else:
        kind, samples_of = Kind.RECEIVE_SAMPLES, {plan.data_holder: plan.workers[worker].samples}
    return [
        Action(kind, peer, samples=samples, size_bytes=samples * sample_bytes)
        for peer, samples in samples_of.items()
        if samples
    ]


def _forward(plan: Plan, chain: Chain, execution: Execution, worker: str) -> list[Action]:
    """The forward pass in segments: at a child's depth the worker takes over the child's samples."""

    def message(kind: Kind, peer: str, depth: int, samples: int) -> Action:
        size_bytes = execution.activation_bytes(chain.output_bytes(depth), samples)
        return Action(kind, peer, last=depth, samples=samples, size_bytes=size_bytes)

    part = plan.workers[worker]
    position, samples = 0, part.samples
    # A child that computes the loss itself sends no activations.
    cuts = [
        (plan.workers[child].depth, child) for child in plan.children(worker) if plan.workers[child].depth < chain.depth
    ]
    actions = []
    for depth, child in [*cuts, (part.depth, None)]:
        if depth > position and samples:
            actions.append(Action(Kind.FORWARD, first=position + 1, last=depth, samples=samples))
        position = depth
        if child is not None:
            actions.append(message(Kind.RECEIVE_ACTIVATIONS, child, depth, plan.carried[child]))
            samples += plan.carried[child]
    if part.parent is not None and part.depth < chain.depth:
        actions.append(message(Kind.SEND_ACTIVATIONS, part.parent, part.depth, samples))
    return actions


def _update(plan: Plan, chain: Chain, worker: str) -> list[Action]:
    """Gradients up the tree, the root's update, new weights down the tree."""

    def message(kind: Kind, peer: str, depth: int) -> Action:
        return Action(kind, peer, first=1, last=depth, size_bytes=chain.parameter_prefix_bytes[depth])

    part = plan.workers[worker]
    children = {child: plan.workers[child].depth for child in plan.children(worker)}
    if part.parent is None:
        own = [Action(Kind.UPDATE, first=1, last=chain.depth)]
    else:
        own = [message(kind, part.parent, part.depth) for kind in (Kind.SEND_GRADIENTS, Kind.RECEIVE_WEIGHTS)]
    return [
        *(message(Kind.RECEIVE_GRADIENTS, child, depth) for child, depth in children.items()),
        *own,
        *(message(Kind.SEND_WEIGHTS, child, depth) for child, depth in children.items()),
    ]


def receipts(program: Program) -> dict[tuple[str, int], tuple[str, int]]:
    """The receive that takes each send's message: (worker, position) by (worker, position). Same kinds keep order."""
    receives: dict[tuple[str, str, Kind], list[tuple[str, int]]] = defaultdict(list)
    for worker, actions in program.actions.items():
        for position, action in enumerate(actions):
            if action.kind in RECEIVES and action.peer is not None:
                receives[action.peer, worker, SEND_OF[action.kind]].append((worker, position))
    found = {}
    for worker, actions in program.actions.items():
        for position, action in enumerate(actions):
            if action.kind in SENDS and action.peer is not None:
                found[worker, position] = receives[worker, action.peer, action.kind].pop(0)
    return found


def compute_s(times: WorkerProfile, action: Action) -> float:
    """Seconds of a computing action on a worker with these times."""
    match action.kind:
        case Kind.FORWARD:
            return times.forward_s(action.first, action.last, action.samples)
        case Kind.BACKWARD:
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


def dry_run(program: Program) -> None:
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
    in_flight: dict[tuple[str, str, Kind], deque[tuple[float, Action]]] = defaultdict(deque)
    spans: list[Span] = []

    def perform(worker: str, action: Action) -> bool:
        """Whether the action could be performed: a receive has to wait for its send."""
        start = now = clock[worker]
        if action.kind in SENDS:
            assert action.peer is not None
            end = start
            if action.size_bytes:  # an empty message costs nothing, but its receiver still waits for the sender
                start, end = message_s(worker, action.peer, now, action.size_bytes)
            in_flight[worker, action.peer, action.kind].append((end, action))
        elif action.kind in RECEIVES:
            assert action.peer is not None
            waiting = in_flight[action.peer, worker, SEND_OF[action.kind]]
            if not waiting:
                return False
            arrival, sent = waiting.popleft()
            if (sent.size_bytes, sent.samples) != (action.size_bytes, action.samples):
                raise InputError(
                    f"program: {action.peer} will {sent} ({sent.size_bytes} bytes), "
                    f"but {worker} will {action} ({action.size_bytes} bytes); both sides must agree"
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
        f"{worker} at action {position[worker] + 1} ({actions[position[worker]]})"
        for worker, actions in program.actions.items()
        if position[worker] < len(actions)
    ]
    if stuck:
        raise InputError(f"program deadlocks: {'; '.join(stuck)}")
    unread = [f"{sent} by {key[0]}" for key, messages in in_flight.items() for _, sent in messages]
    if unread:
        raise InputError(f"program leaves messages unread: {'; '.join(unread)}")
    return Timeline(tuple(spans))
