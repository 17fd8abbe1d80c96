"""The plan lowered to an ordered list of actions per worker.

One iteration (paper, hierarchical training stage): input, forward, backward, gradients up the tree, update at the
root, weights down the tree.
"""

from dataclasses import replace

from hiertrain.problem.chain import Chain
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan, check_plan
from hiertrain.program.actions import BACKWARD_OF, Action, Kind, Program


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
