"""What holds for every execution: any two values of two options together, so that a new one is tested as it is added.

Exact where it loses nothing; what is sent is what is simulated; no bound is above a plan's time; and the proven optimum
is that of every plan. That the solver's model has the simulated time, plan by plan, is in ``planning/test_cpsat``.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hiertrain.cost.bounds import Boxes, Evaluator
from hiertrain.planning.optimize import RESOLUTION, optimize
from hiertrain.planning.trees import trees
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.tree import Tree
from hiertrain.program import passes
from hiertrain.program.actions import Action, Op
from hiertrain.program.compiler import compile_plan
from hiertrain.program.passes import lossy_layers
from hiertrain.program.simulator import iteration_s
from hiertrain.workload.chain_model import ChainModel, chain_from_module
from hiertrain.workload.compression import compress
from hiertrain.workload.spec import OptimizerSettings
from tests.in_threads import run, single_machine_sgd
from tests.oracles import enumerated_optimum
from tests.strategies import EXECUTIONS, NAMES, meeting, plans, plans_of, problems

SHAPE, CLASSES, BATCH = (2, 4, 4), 3, 12
SGD = OptimizerSettings(learning_rate=0.05, momentum=0.9)

every = pytest.mark.parametrize(
    "execution", meeting(EXECUTIONS), ids=lambda execution: "-".join(map(str, dict(execution).values()))
)
few = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", autouse=True)
def _small_buckets() -> Iterator[None]:
    """So that small models have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "LEAST_BUCKET_BYTES", 1)
        yield


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def model(module: nn.Module) -> ChainModel:
    return chain_from_module(module, "given", SHAPE, CLASSES)


def batches() -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [
        (torch.randint(256, (BATCH, *SHAPE), dtype=torch.uint8, generator=random), torch.arange(BATCH) % CLASSES)
        for _ in range(5)
    ]


@every
@few
@given(data=st.data())
def test_training_is_exact_where_nothing_is_lost_and_sends_what_is_simulated(
    execution: Execution, module: nn.Module, model: ChainModel, data: st.DataObject
) -> None:
    plan = data.draw(plans(names=NAMES[:3], depth=model.chain.depth, batch_size=BATCH, data_holder="device"))
    mean = model.chain.model_copy(update={"compressed_sample_bytes": 20})
    program = compile_plan(plan, mean, execution)
    trained, exchanges = run(program, model, SGD, batches(), late=data.draw(st.booleans()))
    expected = single_machine_sgd(module, SGD, batches())
    found, weights = (nn.utils.parameters_to_vector(own.parameters()) for own in (trained, expected))
    tolerance = 1e-6 if not lossy_layers(program, model.chain) else 1e-2
    torch.testing.assert_close(found, weights, rtol=0, atol=tolerance)
    for name, actions in program.actions.items():
        sends = [(action.peer, size) for action in actions if action.op == Op.SEND for size in sizes(action)]
        assert sorted(exchanges[name].sent) == sorted(sends)


def sizes(action: Action) -> list[int]:
    """Of a message in each iteration: compressed samples have their own, each by itself."""
    if not action.compressed:
        return [action.size_bytes] * len(batches())
    rows = [row for start, end in action.rows for row in range(start, end)]
    return [sum(map(len, compress(samples[rows]))) for samples, _ in batches()]


def any_plan(data: st.DataObject, problem: Problem) -> tuple[Tree, Boxes, Plan]:
    """A tree, a box of a single plan of it, and that plan."""
    tree = data.draw(st.sampled_from(list(trees(problem, "tree"))))
    return tree, *data.draw(plans_of(problem, tree))


@every
@few
@given(data=st.data())
def test_no_bound_is_above_the_simulated_time(execution: Execution, data: st.DataObject) -> None:
    problem = replace(data.draw(problems(workers=3)), execution=execution)
    tree, only, plan = any_plan(data, problem)
    time_s, evaluator = iteration_s(problem, plan), Evaluator(problem, tree)
    bound_s = evaluator.bounds_s(only)[0]
    assert bound_s <= time_s * (1 + 1e-12)
    if not execution.prefetch:  # a period may take many iterations to show
        assert bound_s == pytest.approx(time_s, rel=1e-9, abs=1e-15)
    margin = np.array([[data.draw(st.integers(0, 3))] for _ in tree.workers])
    wider = Boxes(only.depths, np.maximum(only.low - margin, 0), only.high + margin)
    assert evaluator.bounds_s(wider)[0] <= time_s * (1 + 1e-12)


@every
@settings(few, max_examples=8)
@given(data=st.data())
def test_the_proven_optimum_is_that_of_every_plan(execution: Execution, data: st.DataObject) -> None:
    layers = 2 if execution.prefetch else 3  # a period takes longer to simulate
    problem = replace(data.draw(problems(workers=3, max_layers=layers, max_batch=3)), execution=execution)
    optimum, _ = enumerated_optimum(problem)
    solution = optimize(problem)
    assert solution.status == "optimal"
    assert solution.bound_s <= optimum * (1 + 1e-9) + 1e-15
    assert solution.objective_s == pytest.approx(iteration_s(problem, solution.plan), rel=1e-9, abs=1e-15)
    assert optimum * (1 - 1e-9) - 1e-15 <= solution.objective_s <= optimum * (1 + RESOLUTION) + 1e-15
