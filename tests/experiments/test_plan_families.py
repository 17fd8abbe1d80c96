"""One plan of every family: all take part, nothing collapses, and the executed messages are the compiled ones."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hiertrain.experiments.plan_families import family_plans
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan, check_plan
from hiertrain.problem.problem import Problem
from hiertrain.program.actions import Op
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import iteration_s, receipts
from tests.strategies import planned_problems, problems, with_least_samples


def used(plan: Plan) -> set[str]:
    return {name for name in plan.workers if plan.active(name)}


@settings(max_examples=15)
@given(st.data())
def test_every_worker_of_a_family_takes_part(data: st.DataObject) -> None:
    problem = data.draw(with_least_samples(data.draw(problems(max_layers=5))))
    plans = family_plans(problem)
    assert {f"all-{name}" for name in ("device", "edge", "cloud")} <= plans.keys()
    for name, plan in plans.items():
        check_plan(plan, problem.profile.chain)
        assert iteration_s(problem, plan) >= 0
        shape = {worker: part.parent for worker, part in plan.workers.items() if worker in used(plan)}
        assert len(shape) == (1 if name.startswith("all-") else 2 if name.startswith(("layers", "samples")) else 3)
        if name.startswith("layers"):
            assert sum(part.samples > 0 for part in plan.workers.values()) == 1
        if name.startswith(("samples", "data-parallel")):
            assert {plan.workers[worker].depth for worker in shape} == {problem.profile.chain.depth}
        if name.startswith("star"):
            assert list(shape.values()).count(plan.root) == 2
        if name.startswith("chain"):
            assert list(shape.values()).count(plan.root) == 1


@given(planned_problems())
def test_every_send_has_the_receive_that_takes_its_message(drawn: tuple[Problem, Plan]) -> None:
    problem, plan = drawn
    program = compile_plan(plan, problem.profile.chain, Execution.paper())
    found = receipts(program)
    places = {(w, p): action for w, actions in program.actions.items() for p, action in enumerate(actions)}
    assert found.keys() == {place for place, action in places.items() if action.op == Op.SEND}
    assert sorted(found.values()) == sorted(place for place, action in places.items() if action.op == Op.RECEIVE)
    for send, receipt in found.items():
        sent, received = places[send], places[receipt]
        assert (sent.peer, sent.size_bytes, sent.samples) == (receipt[0], received.size_bytes, received.samples)
        assert received.peer == send[0]
