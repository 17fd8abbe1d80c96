"""Whatever a person changes in a program: the dry run refuses it, or it trains exactly like one machine."""

from collections.abc import Callable
from typing import Literal

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.program.actions import MOST_AHEAD, Action, Program, Role, Rows, joined
from hiertrain.program.compiler import compile_plan
from hiertrain.program.dry_run import dry_run
from hiertrain.program.passes import lossy_layers
from hiertrain.program.table import from_csv, to_csv
from hiertrain.values import InputError
from hiertrain.workload.chain_model import chain_from_module
from hiertrain.workload.spec import OptimizerSettings
from tests.in_threads import run, single_machine_sgd
from tests.runtime.test_runner import CLASSES, DEPTH, SHAPE, build_net
from tests.strategies import plans

NAMES, BATCH = ("device", "edge", "cloud"), 6
MODEL = chain_from_module(build_net(), "given", SHAPE, CLASSES)
MEAN = MODEL.chain.model_copy(update={"compressed_sample_bytes": 20})
OPTIMIZER = OptimizerSettings(learning_rate=0.05, momentum=0.9)
GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [
    (torch.randint(256, (BATCH, *SHAPE), dtype=torch.uint8, generator=GENERATOR), torch.arange(BATCH) % CLASSES)
    for _ in range(4)
]
EXPECTED = single_machine_sgd(build_net(), OPTIMIZER, BATCHES)
SPLIT = Plan.model_validate(
    {
        "batch_size": BATCH,
        "data_holder": "device",
        "workers": {
            "device": {"parent": "edge", "depth": 2, "samples": 2},
            "edge": {"parent": None, "depth": DEPTH, "samples": 4},
        },
    }
)
Actions = dict[str, list[Action]]
Change = Callable[[st.DrawFn, Actions, str, int], None]


def check_exact(program: Program, late: bool = False) -> None:
    trained, _ = run(program, MODEL, OPTIMIZER, BATCHES, late=late)
    found = {name.split(".", 2)[2]: parameter for name, parameter in trained.named_parameters()}
    for name, parameter in EXPECTED.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=1e-6)


def drop(_: st.DrawFn, actions: Actions, name: str, at: int) -> None:
    del actions[name][at]


def repeat(draw: st.DrawFn, actions: Actions, name: str, at: int) -> None:
    actions[name].insert(draw(st.integers(0, len(actions[name]))), actions[name][at])


def swap(draw: st.DrawFn, actions: Actions, name: str, at: int) -> None:
    own = actions[name]
    other = draw(st.integers(0, len(own) - 1))
    own[at], own[other] = own[other], own[at]


def move(draw: st.DrawFn, actions: Actions, name: str, at: int) -> None:
    action = actions[name].pop(at)
    actions[draw(st.sampled_from(sorted(actions)))].append(action)


def renumber(draw: st.DrawFn, actions: Actions, _: str, __: int) -> None:
    """Others of the mini-batch's rows for everybody: no plan compiles to that, but nothing is wrong with it."""
    order = draw(st.permutations(range(BATCH)))
    for own in actions.values():
        for position, action in enumerate(own):
            rows = [(order[row], order[row] + 1) for start, end in action.rows for row in range(start, min(end, BATCH))]
            own[position] = action.model_copy(update={"rows": joined(tuple(rows))})


def swap_neighbours(_: st.DrawFn, actions: Actions, name: str, at: int) -> None:
    own = actions[name]
    own[max(0, at - 1) : at + 1] = own[max(0, at - 1) : at + 1][::-1]


def to(field: str, values: Callable[[Action], st.SearchStrategy[object]]) -> Change:
    """Another value of a field, of one action or of both sides of a message, as by a person who means it."""

    def change(draw: st.DrawFn, actions: Actions, worker: str, at: int) -> None:
        action = actions[worker][at]
        update = {field: draw(values(action))}
        if action.peer in actions and draw(st.booleans()):
            actions[action.peer] = [
                other.model_copy(update=update) if (other.peer, other.content) == (worker, action.content) else other
                for other in actions[action.peer]
            ]
        actions[worker][at] = action.model_copy(update=update)

    change.__name__ = field
    return change


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    rows = st.tuples(st.integers(0, BATCH), st.integers(0, BATCH + 1))
    return tuple(draw(st.lists(rows, max_size=2)))


LAYERS = st.integers(0, DEPTH + 1)
CHANGES: tuple[Change, ...] = (
    drop,
    repeat,
    swap,
    swap_neighbours,
    move,
    renumber,
    to("size_bytes", lambda action: st.sampled_from([0, action.size_bytes + 4, action.size_bytes // 2])),
    to("rows", lambda _: some_rows()),
    to("peer", lambda _: st.sampled_from([*NAMES, "moon", None])),
    to("first", lambda _: LAYERS),
    to("last", lambda _: LAYERS),
    to("encoding", lambda _: st.sampled_from(["uint8", "float32", "zlib", "scaled-uint8", "float16", "float64", None])),
    to("role", lambda _: st.sampled_from([*Role, None])),
    to("ahead", lambda _: st.integers(0, MOST_AHEAD)),
)


@st.composite
def changed_programs(draw: st.DrawFn) -> Program:
    plan: Plan = draw(plans(names=NAMES, depth=DEPTH, batch_size=BATCH))
    encoding: Literal["uint8", "float32", "zlib"] = draw(st.sampled_from(["uint8", "float32", "zlib"]))
    execution = Execution(sample_encoding=encoding, prefetch=draw(st.booleans()))
    program = compile_plan(plan, MEAN, execution)
    actions = {name: list(own) for name, own in program.actions.items()}
    for change in draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=2)):
        name = draw(st.sampled_from([name for name in actions if actions[name]] or [""]))
        if name:
            change(draw, actions, name, draw(st.integers(0, len(actions[name]) - 1)))
            event(change.__name__)
    update = {"actions": {name: tuple(own) for name, own in actions.items()}, "overlapped": draw(st.booleans())}
    changed = program.model_copy(update=update)
    event("in fact the same" if changed == program else "another")
    return changed


@settings(max_examples=500)
@given(changed_programs(), st.booleans())
def test_a_changed_program_is_refused_or_trains_exactly(program: Program, late: bool) -> None:
    try:
        dry_run(program, MODEL.chain)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - not an error of the test
        return
    event("trains")
    if not lossy_layers(program, MODEL.chain):
        check_exact(program, late)


@settings(max_examples=30)
@given(plans(names=NAMES, depth=DEPTH, batch_size=BATCH), st.booleans())
def test_what_is_read_from_a_table_trains_exactly(plan: Plan, prefetch: bool) -> None:
    program = from_csv(to_csv(compile_plan(plan, MODEL.chain, Execution(prefetch=prefetch))))
    dry_run(program, MODEL.chain)
    check_exact(program)


def test_a_table_that_no_plan_compiles_to_trains_exactly() -> None:
    """The device's own rows are the last of the mini-batch and the first, in this order."""
    table = to_csv(compile_plan(SPLIT, MODEL.chain, Execution.paper()))
    changed = from_csv(table.replace("0..1", "5 0").replace("2..5", "1..4"))
    assert changed != from_csv(table)
    dry_run(changed, MODEL.chain)
    check_exact(changed)
