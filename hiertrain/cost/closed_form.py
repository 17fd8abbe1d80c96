"""The cost model's closed form: one function per equation, for ``Execution.paper()``, to be read beside the paper.

F_w, D_w and T of the paper's optimization stage, written for any rooted tree of workers: each equation is one pass over
the active workers, up or down the tree. All results in seconds from the start of the iteration. ``simulate`` times the
compiled program instead; a test holds the two together.
"""

from collections.abc import Mapping
from typing import NamedTuple

from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan, check_plan
from hiertrain.problem.problem import Problem
from hiertrain.values import InputError


class Message(NamedTuple):
    """What one worker sends to another."""

    ready_s: float
    size_bytes: int


def input_s(problem: Problem, plan: Plan, worker: str) -> float:
    """(1) When the raw samples of ``worker`` have arrived from the data holder."""
    if worker == plan.data_holder:
        return 0.0
    raw_bytes = plan.workers[worker].samples * problem.profile.sample_bytes
    return problem.network.message_s(plan.data_holder, worker, raw_bytes)


def forward_end_s(problem: Problem, plan: Plan) -> dict[str, float]:
    """(2) F_w: when each active worker has computed its own depth for all samples that reach it."""
    ends: dict[str, float] = {}
    for worker in reversed(plan.top_down):
        times = problem.profile.worker(worker)
        now, position, samples = input_s(problem, plan, worker), 0, plan.workers[worker].samples
        for child in _cut_children(problem, plan, worker):
            depth, activations = plan.workers[child].depth, _activations(problem, plan, child, ends[child])
            now += times.forward_s(position + 1, depth, samples)
            now = max(now, _arrival_s(problem, plan, child, worker, activations))
            position, samples = depth, samples + plan.carried[child]
        ends[worker] = now + times.forward_s(position + 1, plan.workers[worker].depth, samples)
    return ends


def backward_s(
    problem: Problem, plan: Plan, forward_s: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, Message]]:
    """(3) When each active worker ends its backward pass, and the gradient of each one's activations on its parent.

    ``forward_s``: F_w. The gradient is empty where a child computes the loss itself.
    """
    ends: dict[str, float] = {}
    gradients: dict[str, Message] = {}
    for worker in plan.top_down:
        times, part, now = problem.profile.worker(worker), plan.workers[worker], forward_s[worker]
        if part.depth < problem.profile.chain.depth:
            assert part.parent is not None
            now = max(now, _arrival_s(problem, plan, part.parent, worker, gradients[worker]))
        children = _cut_children(problem, plan, worker)
        gradients |= {child: _activations(problem, plan, child, 0.0) for child in plan.children(worker)}
        position, samples = part.depth, part.samples + sum(plan.carried[child] for child in children)
        for child in reversed(children):
            depth = plan.workers[child].depth
            now += times.backward_s(depth + 1, position, samples)
            gradients[child] = _activations(problem, plan, child, now)
            position, samples = depth, samples - plan.carried[child]
        ends[worker] = now + times.backward_s(1, position, samples)
    return ends, gradients


def gradients_end_s(
    problem: Problem, plan: Plan, forward_s: Mapping[str, float], backward_s: Mapping[str, float]
) -> dict[str, float]:
    """(4) D_w: when each active worker has the summed gradients of its subtree. From F_w and (3)."""
    ends: dict[str, float] = {}
    for worker in reversed(plan.top_down):
        end = backward_s[worker]
        for child in plan.children(worker):
            activations = _activations(problem, plan, child, forward_s[child])
            gradients = Message(ends[child], _parameter_bytes(problem, plan, child))
            end = max(end, _arrival_s(problem, plan, child, worker, activations, gradients))
        ends[worker] = end
    return ends


def weights_end_s(problem: Problem, plan: Plan, gradients: Mapping[str, Message], updated_s: float) -> float:
    """When the last active worker has the new weights, which the root has at ``updated_s``.

    ``gradients``: of each one's activations, which left its parent before.
    """
    ends = {plan.root: updated_s}
    for worker in plan.top_down[1:]:
        parent = plan.workers[worker].parent
        assert parent is not None
        weights = Message(ends[parent], _parameter_bytes(problem, plan, worker))
        ends[worker] = _arrival_s(problem, plan, parent, worker, gradients[worker], weights)
    return max(ends.values())


def iteration_s(problem: Problem, plan: Plan) -> float:
    """(5) T: one iteration of the paper's execution.

    Raises InputError when the problem has another one, or the plan does not fit its model, workers or links.
    """
    if problem.execution != Execution.paper():
        raise InputError(f"closed form: is of the paper's execution alone, not of {problem.execution}; simulate it")
    check_plan(plan, problem.profile.chain)
    forward = forward_end_s(problem, plan)
    backward, gradients = backward_s(problem, plan, forward)
    summed = gradients_end_s(problem, plan, forward, backward)
    updated_s = summed[plan.root] + problem.profile.worker(plan.root).update_s
    return weights_end_s(problem, plan, gradients, updated_s)


def _cut_children(problem: Problem, plan: Plan, worker: str) -> list[str]:
    """The active children that send activations, shallowest first: those that do not compute the loss themselves."""
    return [child for child in plan.children(worker) if plan.workers[child].depth < problem.profile.chain.depth]


def _activations(problem: Problem, plan: Plan, child: str, ready_s: float) -> Message:
    """The activations of ``child`` for its parent, or their gradient; empty where it computes the loss itself."""
    depth, chain = plan.workers[child].depth, problem.profile.chain
    if depth == chain.depth:
        return Message(ready_s, 0)
    return Message(ready_s, plan.carried[child] * chain.output_bytes(depth))


def _parameter_bytes(problem: Problem, plan: Plan, worker: str) -> int:
    return problem.profile.chain.parameter_prefix_bytes[plan.workers[worker].depth]


def _arrival_s(problem: Problem, plan: Plan, source: str, target: str, *messages: Message) -> float:
    """(6) When the last of all messages so far from ``source`` to ``target`` arrives; an empty one when it is ready.

    The rule of ``Network``, unrolled: latency + max over k of (ready_k + max(0, 8 (x_k + .. + x_last) / bandwidth -
    credit)). A source that holds the data has sent the raw samples first, at 0.
    """
    if source == plan.data_holder:
        messages = (Message(0.0, plan.workers[target].samples * problem.profile.sample_bytes), *messages)
    arrival_s, last_bytes = messages[-1]
    if not last_bytes:
        return arrival_s
    link, size_bytes = problem.network.link(source, target), 0
    for message in reversed(messages):
        size_bytes += message.size_bytes
        excess_bytes = max(0.0, size_bytes - link.burst_bytes)
        arrival_s = max(arrival_s, message.ready_s + link.transmission_s(excess_bytes))
    return arrival_s + link.latency_s
