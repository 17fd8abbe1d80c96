"""The plan lowered to an ordered list of actions per worker, and the simulation of those lists.

The runtime executes the very program that ``simulate`` times, so prediction and execution cannot drift apart.
One iteration (paper, hierarchical training stage): input, forward, backward, gradients up the tree, update at the
root, weights down the tree.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from hiertrain.chain import Chain
from hiertrain.network import Network
from hiertrain.plan import Execution, Plan, check_plan
from hiertrain.profile import Profile, WorkerProfile
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
    actions: list[Action] = []
    part = plan.workers[worker]

    def raw(kind: Kind, peer: str, samples: int) -> Action:
        return Action(kind, peer, samples=samples, size_bytes=samples * execution.encoded_bytes(chain.sample_bytes))

    def activations(kind: Kind, peer: str, depth: int, samples: int) -> Action:
        return Action(kind, peer, last=depth, samples=samples, size_bytes=samples * chain.output_bytes(depth))

    def parameters(kind: Kind, peer: str, depth: int) -> Action:
        return Action(kind, peer, first=1, last=depth, size_bytes=chain.parameter_prefix_bytes[depth])

    if worker == plan.data_holder:
        receivers = {peer: other.samples for peer, other in plan.workers.items() if other.samples and peer != worker}
        actions += [raw(Kind.SEND_SAMPLES, peer, samples) for peer, samples in receivers.items()]
    if not plan.active(worker):
        return actions
    if part.samples and worker != plan.data_holder:
        actions.append(raw(Kind.RECEIVE_SAMPLES, plan.data_holder, part.samples))

    position, samples = 0, part.samples
    backward: list[Action] = []  # mirrors the forward pass, last step first

    def compute(to: int) -> None:
        if to > position and samples:
            actions.append(Action(Kind.FORWARD, first=position + 1, last=to, samples=samples))
            backward.insert(0, Action(Kind.BACKWARD, first=position + 1, last=to, samples=samples))

    children = plan.children(worker)
    for child in children:
        depth, carried = plan.workers[child].depth, plan.carried[child]
        if depth == chain.depth:  # the child computes the loss itself and sends no activations
            continue
        compute(depth)
        position = depth
        actions.append(activations(Kind.RECEIVE_ACTIVATIONS, child, depth, carried))
        backward.insert(0, activations(Kind.SEND_ACTIVATION_GRADIENTS, child, depth, carried))
        samples += carried
    compute(part.depth)
    if part.depth < chain.depth:
        assert part.parent is not None  # only the root has none, and its depth is N
        actions.append(activations(Kind.SEND_ACTIVATIONS, part.parent, part.depth, samples))
        actions.append(activations(Kind.RECEIVE_ACTIVATION_GRADIENTS, part.parent, part.depth, samples))
    actions += backward

    actions += [parameters(Kind.RECEIVE_GRADIENTS, child, plan.workers[child].depth) for child in children]
    if part.parent is None:
        actions.append(Action(Kind.UPDATE, first=1, last=chain.depth))
    else:
        actions.append(parameters(Kind.SEND_GRADIENTS, part.parent, part.depth))
        actions.append(parameters(Kind.RECEIVE_WEIGHTS, part.parent, part.depth))
    actions += [parameters(Kind.SEND_WEIGHTS, child, plan.workers[child].depth) for child in children]
    return actions


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

    def message_s(source: str, target: str, size_bytes: int) -> tuple[float, float]:
        link = network.link(source, target)
        return link.transmission_s(size_bytes), link.latency_s

    return _replay(program, lambda worker, action: compute_s(profile.worker(worker), action), message_s)


def dry_run(program: Program) -> None:
    """Raise InputError when the program cannot finish: a deadlock, or messages whose two sides disagree."""
    _replay(program, lambda *_: 0.0, lambda *_: (0.0, 0.0))


def _replay(
    program: Program,
    duration_s: Callable[[str, Action], float],
    message_s: Callable[[str, str, int], tuple[float, float]],
) -> Timeline:
    """Perform the program: ``duration_s`` gives an action's duration, ``message_s`` (transmission, latency)."""
    clock = dict.fromkeys(program.actions, 0.0)
    position = dict.fromkeys(program.actions, 0)
    link_free: dict[tuple[str, str], float] = defaultdict(float)
    in_flight: dict[tuple[str, str, Kind], deque[tuple[float, Action]]] = defaultdict(deque)
    spans: list[Span] = []

    def perform(worker: str, action: Action) -> bool:
        """Whether the action could be performed: a receive has to wait for its send."""
        start = now = clock[worker]
        if action.kind in SENDS:
            assert action.peer is not None
            end = start
            if action.size_bytes:  # an empty message costs nothing, but its receiver still waits for the sender
                start = max(now, link_free[worker, action.peer])
                transmission_s, latency_s = message_s(worker, action.peer, action.size_bytes)
                link_free[worker, action.peer] = start + transmission_s
                end = start + transmission_s + latency_s
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
