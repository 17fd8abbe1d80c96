"""Every policy that is compared: the best plan under its restriction, and how it is executed.

All plans are found, exactly, with the same cost model, and their times are predicted with the same costs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from hiertrain.planning.baselines import best_chain, best_layer_parallel
from hiertrain.planning.optimize import optimize
from hiertrain.problem.hierarchy import Tier, of_tier
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.solution import Shape
from hiertrain.program.simulator import iteration_s
from hiertrain.values import InputError, NoPlanError, RunError

# The chains of tiers that split layers only; all samples start on the first worker that computes.
CHAINS: dict[str, tuple[Tier, ...]] = {
    "all-device": ("device",),
    "all-edge": ("edge",),
    "all-cloud": ("cloud",),
    "jointdnn": ("device", "cloud"),
    "jointdnn+": ("device", "edge", "cloud"),
    "jalad": ("device", "cloud"),
    "jalad+": ("device", "edge", "cloud"),
}
SINGLE = ("all-device", "all-edge", "all-cloud")  # one machine does everything
POLICIES = (*CHAINS, "data-parallel", "layer-parallel", "hiertrain", "hiertrain+")
# The proofs take seconds; on a busy computer more.
TIME_LIMIT_S = 600.0


@dataclass(frozen=True)
class Policy:
    """What a policy comes to for a problem."""

    name: str
    plan: Plan
    problem: Problem  # with the execution that the plan runs with

    @cached_property
    def predicted_s(self) -> float:
        """Seconds of one iteration."""
        return iteration_s(self.problem, self.plan)


def find_policies(problem: Problem, names: Sequence[str] = POLICIES) -> dict[str, Policy]:
    """The named policies, in the given order. Where a tier has several workers, a chain has the best one of them.

    Where samples stay or memory is limited, a policy of which no plan keeps that is left out.
    Raises InputError for an unknown name, for a tier that a policy needs and no worker has, for a policy without any
    plan elsewhere, and for a problem with other constraints or that sends anything but float32; RunError when the proof
    of an optimum takes too long.
    """
    for name in names:
        if name not in POLICIES:
            raise InputError(f"policy {name!r} is unknown; there are {', '.join(POLICIES)}")
    float32 = {"activation_encoding": "float32", "parameter_encoding": "float32"}
    execution = problem.execution.model_copy(update=float32)
    if problem != replace(problem, execution=execution, root=None, whole_model=False):
        raise InputError(
            "policies: they restrict a problem themselves; it must leave root and depths open, and send float32"
        )
    found = {}
    for name in names:
        try:
            found[name] = _find(name, problem)
        except NoPlanError:
            if not problem.samples_stay and not problem.memory_limit_bytes:
                raise
    return found


def _find(name: str, problem: Problem) -> Policy:
    if name.startswith("jalad"):
        execution = problem.execution.model_copy(update={"activation_encoding": "uint8"})
        problem = replace(problem, execution=execution)
    return Policy(name, _plan(name, problem), problem)


def _plan(name: str, problem: Problem) -> Plan:
    match name:
        case "data-parallel":
            return optimum(replace(problem, whole_model=True), "tree")
        case "layer-parallel":
            return best_layer_parallel(problem)
        case "hiertrain":  # the paper's costs are proportional to the number of samples
            return optimum(replace(problem, profile=problem.profile.linear_at(problem.batch_size)), "star")
        case "hiertrain+":
            return optimum(problem, "tree")
    able = {worker: problem.profile.worker(worker) for worker in problem.workers}
    return best_chain(problem, *product(*(of_tier(able, tier) for tier in CHAINS[name])))


def optimum(problem: Problem, shape: Shape) -> Plan:
    """The fastest plan. Raises RunError where it is not proven within ``TIME_LIMIT_S``."""
    solution = optimize(problem, shape=shape, time_limit_s=TIME_LIMIT_S)
    if solution.status != "optimal":
        raise RunError(
            f"plan of shape {shape!r} for {problem.profile.model}: after {TIME_LIMIT_S:.0f} s the best one takes "
            f"{solution.objective_s} s, and only {solution.bound_s} s is proven to be necessary"
        )
    return solution.plan
