"""The cost model's closed form: one function per equation, for ``Execution.paper()`` and its sample encodings.

F_w, D_w and T of the paper's optimization stage, written for any rooted tree of workers. All results in seconds
from the start of the iteration. ``simulate`` times the compiled program instead; a test holds the two together.
"""

from hiertrain.plan import Plan, Problem, check_plan


def input_s(problem: Problem, plan: Plan, worker: str) -> float:
    """(1) When the raw samples of ``worker`` have arrived from the data holder."""
    if worker == plan.data_holder:
        return 0.0
    raw_bytes = plan.workers[worker].samples * problem.sample_bytes
    return problem.network.message_s(plan.data_holder, worker, raw_bytes)


def forward_end_s(problem: Problem, plan: Plan, worker: str) -> float:
    """(2) F_w: when ``worker`` has computed its own depth for all samples that reach it."""
    chain, times = problem.profile.chain, problem.profile.worker(worker)
    now, position, samples = input_s(problem, plan, worker), 0, plan.workers[worker].samples
    for child in _cut_children(problem, plan, worker):
        depth = plan.workers[child].depth
        now += times.forward_s(position + 1, depth, samples)
        activation_bytes = plan.carried[child] * chain.output_bytes(depth)
        now = max(now, _arrival_s(problem, plan, child, forward_end_s(problem, plan, child), activation_bytes))
        position, samples = depth, samples + plan.carried[child]
    return now + times.forward_s(position + 1, plan.workers[worker].depth, samples)


def backward_s(problem: Problem, plan: Plan, worker: str) -> tuple[float, dict[str, float]]:
    """(3) When ``worker`` ends its backward pass, and when the gradient of each child's activations arrives there."""
    chain, times, part = problem.profile.chain, problem.profile.worker(worker), plan.workers[worker]
    if part.depth == chain.depth:
        now = forward_end_s(problem, plan, worker)
    else:
        assert part.parent is not None
        now = max(forward_end_s(problem, plan, worker), backward_s(problem, plan, part.parent)[1][worker])
    children = _cut_children(problem, plan, worker)
    samples = part.samples + sum(plan.carried[child] for child in children)
    position, arrivals = part.depth, {}
    for child in reversed(children):
        depth = plan.workers[child].depth
        now += times.backward_s(depth + 1, position, samples)
        gradient_bytes = plan.carried[child] * chain.output_bytes(depth)
        arrivals[child] = now + problem.network.message_s(worker, child, gradient_bytes)
        position, samples = depth, samples - plan.carried[child]
    return now + times.backward_s(1, position, samples), arrivals


def gradients_end_s(problem: Problem, plan: Plan, worker: str) -> float:
    """(4) D_w: when ``worker`` has the summed gradients of its subtree."""
    end = backward_s(problem, plan, worker)[0]
    for child in plan.children(worker):
        parameter_bytes = problem.profile.chain.parameter_prefix_bytes[plan.workers[child].depth]
        end = max(end, _arrival_s(problem, plan, child, gradients_end_s(problem, plan, child), parameter_bytes))
    return end


def weights_s(problem: Problem, plan: Plan, worker: str) -> float:
    """Seconds until the slowest of the subtree of ``worker`` has the new weights."""
    prefix = problem.profile.chain.parameter_prefix_bytes
    return max(
        (
            problem.network.message_s(worker, child, prefix[plan.workers[child].depth])
            + weights_s(problem, plan, child)
            for child in plan.children(worker)
        ),
        default=0.0,
    )


def iteration_s(problem: Problem, plan: Plan) -> float:
    """(5) T: one iteration. Raises InputError when the plan does not fit the problem's model, workers or links."""
    check_plan(plan, problem.profile.chain)
    update_s = problem.profile.worker(plan.root).update_s
    return gradients_end_s(problem, plan, plan.root) + update_s + weights_s(problem, plan, plan.root)


def memory_bytes(problem: Problem, plan: Plan, worker: str) -> int:
    """Memory that ``worker`` needs at least: weights, gradients and the activations kept for the backward pass.

    The root also holds two more copies of the weights, which is what Adam keeps. Raises InputError when the
    profile lacks ``activation_bytes``.
    """
    chain, part = problem.profile.chain, plan.workers[worker]
    copies = 4 if worker == plan.root else 2
    total = copies * chain.parameter_prefix_bytes[part.depth]
    for number, layer in enumerate(chain.layers[: part.depth], start=1):
        total += (layer.activation_bytes or 0) * samples_at(plan, worker, number)
    return total


def samples_at(plan: Plan, worker: str, layer: int) -> int:
    """n: the samples that ``worker`` computes in layer number ``layer`` (1-based); 0 beyond its depth."""
    part = plan.workers[worker]
    if layer > part.depth:
        return 0
    received = sum(plan.carried[child] for child in plan.children(worker) if plan.workers[child].depth < layer)
    return part.samples + received


def _cut_children(problem: Problem, plan: Plan, worker: str) -> list[str]:
    """The active children that send activations, shallowest first: those that do not compute the loss themselves."""
    return [child for child in plan.children(worker) if plan.workers[child].depth < problem.profile.chain.depth]


def _arrival_s(problem: Problem, plan: Plan, child: str, ready_s: float, size_bytes: int) -> float:
    """When a message that ``child`` has ready at ``ready_s`` reaches its parent.

    The one queue that matters: a child that holds the data first sends its parent the raw samples. An empty message
    costs nothing and does not queue.
    """
    parent = plan.workers[child].parent
    assert parent is not None
    if child == plan.data_holder and size_bytes:
        raw_bytes = plan.workers[parent].samples * problem.sample_bytes
        ready_s = max(ready_s, problem.network.link(child, parent).transmission_s(raw_bytes))
    return ready_s + problem.network.message_s(child, parent, size_bytes)
