"""The memory that training takes of each worker, in bytes: what limits are for, and what runs are held against.

Counted are tensors as they are asked for: weights, their gradients and what the optimizer keeps of them; what forward
passes keep for backward passes; and messages, whose buffers a worker has all the time. Not counted is what a process
has besides: the interpreter, PyTorch, data sets, the scratch of single layers, what compressed samples are restored to,
and gaps between the tensors.
"""

from hiertrain.problem.chain import Chain
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.program.actions import Op, Program, WorkerProgram, copies_held
from hiertrain.program.compiler import compile_plan

# Besides tensors: threads, code that is loaded when it is first used, scratch of small layers.
PROCESS_BYTES = 64 * 2**20


def process_bytes(chain: Chain, depth: int) -> int:
    """At most so much more has a process of a worker with layers 1..depth been seen to take.

    A gradient is asked for anew in every iteration, and it may not fit the gaps between other tensors: the largest may
    take twice as much again.
    """
    return PROCESS_BYTES + 2 * max(layer.parameter_bytes for layer in chain.layers[:depth])


def memory_bytes(problem: Problem, plan: Plan, worker: str) -> int:
    """What ``worker`` needs for a plan; 0 where it computes nothing: limits are for those who compute."""
    if not plan.active(worker):
        return 0
    program = compile_plan(plan, problem.profile.chain, problem.execution)
    return memory_of(program, problem.profile.chain, problem.optimizer_copies).get(worker, 0)


def memory_of(program: Program, chain: Chain, optimizer_copies: int) -> dict[str, int]:
    """What each worker of a program needs."""
    return {name: _bytes(program.part(name), chain, optimizer_copies) for name in program.actions}


def _bytes(program: WorkerProgram, chain: Chain, optimizer_copies: int) -> int:
    """What a worker needs. A layer without ``activation_bytes`` counts as keeping none."""
    kept = [0, *(layer.activation_bytes or 0 for layer in chain.layers)]
    prefix, layers = chain.parameter_prefix_bytes, program.layers
    activations = most = messages = updated = 0
    for action in program.actions:
        if action.op in (Op.FORWARD, Op.BACKWARD):
            own = action.samples * sum(kept[action.first : action.last + 1])
            activations += own if action.op == Op.FORWARD else -own
            most = max(most, activations)
        elif action.op == Op.UPDATE:
            updated += prefix[action.last] - prefix[action.first - 1]
        else:
            assert action.role is not None
            assert action.encoding is not None
            messages += copies_held(action.role, action.encoding, program.overlapped) * action.size_bytes
    weights = 2 * (prefix[layers.stop - 1] - prefix[layers.start - 1]) + optimizer_copies * updated
    return weights + most + messages
