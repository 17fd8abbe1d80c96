"""The cost model's closed form: one function per equation, for ``Execution.paper()``, to be read beside the paper.

F_w, D_w and T of the paper's optimization stage, written for any rooted tree of workers. All results in seconds
from hiertrain.problem.execution import Execution
from the start of the iteration. ``simulate`` times the compiled program instead; a test holds the two together.
"""

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


def forward_end_s(problem: Problem, plan: Plan, worker: str) -> float:
    """(2) F_w: when ``worker`` has computed its own depth for all samples that reach it."""
    times = problem.profile.worker(worker)
    now, position, samples = input_s(problem, plan, worker), 0, plan.workers[worker].samples
    for child in _cut_children(problem, plan, worker):
        depth = plan.workers[child].depth
        now += times.forward_s(position + 1, depth, samples)
        now = max(now, _arrival_s(problem, plan, child, worker, _activations(problem, plan, child)))
        position, samples = depth, samples + plan.carried[child]
    return now + times.forward_s(position + 1, plan.workers[worker].depth, samples)


def backward_s(problem: Problem, plan: Plan, worker: str) -> tuple[float, dict[str, float]]:
    """(3) When ``worker`` ends its backward pass, and when the gradient of each child's activations leaves it."""
    times, part, now = problem.profile.worker(worker), plan.workers[worker], forward_end_s(problem, plan, worker)
    if part.depth < problem.profile.chain.depth:
        assert part.parent is not None
        gradient = _activation_gradient(problem, plan, worker)
        now = max(now, _arrival_s(problem, plan, part.parent, worker, gradient))
    children = _cut_children(problem, plan, worker)
    samples = part.samples + sum(plan.carried[child] for child in children)
    position, leaves = part.depth, {}
    for child in reversed(children):
        depth = plan.workers[child].depth
        now += times.backward_s(depth + 1, position, samples)
        leaves[child] = now
        position, samples = depth, samples - plan.carried[child]
    return now + times.backward_s(1, position, samples), leaves


def gradients_end_s(problem: Problem, plan: Plan, worker: str) -> float:
    """(4) D_w: when ``worker`` has the summed gradients of its subtree."""
    end = backward_s(problem, plan, worker)[0]
    for child in plan.children(worker):
        gradients = Message(gradients_end_s(problem, plan, child), _parameter_bytes(problem, plan, child))
        end = max(end, _arrival_s(problem, plan, child, worker, _activations(problem, plan, child), gradients))
    return end


def weights_end_s(problem: Problem, plan: Plan, worker: str, ready_s: float) -> float:
    """When the last of the subtree of ``worker`` has the new weights, which ``worker`` has at ``ready_s``."""
    end = ready_s
    for child in plan.children(worker):
        weights = Message(ready_s, _parameter_bytes(problem, plan, child))
        arrival_s = _arrival_s(problem, plan, worker, child, _activation_gradient(problem, plan, child), weights)
        end = max(end, weights_end_s(problem, plan, child, arrival_s))
    return end


def iteration_s(problem: Problem, plan: Plan) -> float:
    """(5) T: one iteration of the paper's execution.

    Raises InputError when the problem has another one, or the plan does not fit its model, workers or links.
    """
    if problem.execution != Execution.paper():
        raise InputError(f"closed form: is of the paper's execution alone, not of {problem.execution}; simulate it")
    check_plan(plan, problem.profile.chain)
    updated_s = gradients_end_s(problem, plan, plan.root) + problem.profile.worker(plan.root).update_s
    return weights_end_s(problem, plan, plan.root, updated_s)


def memory_bytes(problem: Problem, plan: Plan, worker: str) -> int:
    """Memory that ``worker`` needs at least: weights, gradients and the activations kept for the backward pass.

    The root also holds two more copies of the weights, which is what Adam keeps. Raises InputError when the
    profile lacks ``activation_bytes``.
    """
    chain, part = problem.profile.chain, plan.workers[worker]
    copies = 4 if worker == plan.root else 2
    total = copies * chain.parameter_prefix_bytes[part.depth]
    for number, layer in enumerate(chain.layers[: part.depth], start=1):
        total += (layer.activation_bytes or 0) * plan.samples_at(worker, number)
    return total


def _cut_children(problem: Problem, plan: Plan, worker: str) -> list[str]:
    """The active children that send activations, shallowest first: those that do not compute the loss themselves."""
    return [child for child in plan.children(worker) if plan.workers[child].depth < problem.profile.chain.depth]


def _activations(problem: Problem, plan: Plan, child: str) -> Message:
    """The activations of ``child``, ready for its parent; empty where it computes the loss itself."""
    return Message(forward_end_s(problem, plan, child), _activation_bytes(problem, plan, child))


def _activation_gradient(problem: Problem, plan: Plan, child: str) -> Message:
    """The gradient of the activations of ``child``, ready on its parent; empty where the child computes the loss."""
    parent = plan.workers[child].parent
    assert parent is not None
    leaves = backward_s(problem, plan, parent)[1]
    return Message(leaves.get(child, 0.0), _activation_bytes(problem, plan, child))


def _activation_bytes(problem: Problem, plan: Plan, child: str) -> int:
    """Bytes of the activations of ``child`` for its parent, and of their gradient."""
    depth, chain = plan.workers[child].depth, problem.profile.chain
    if depth == chain.depth:
        return 0
    return plan.carried[child] * chain.output_bytes(depth)


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
