"""A program as a table: read back it is the same, and what is wrong in it is named by line and column."""

import pytest
from hypothesis import given

from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.program.actions import Program
from hiertrain.program.compiler import compile_plan
from hiertrain.program.dry_run import dry_run
from hiertrain.program.table import COLUMNS, from_csv, to_csv
from hiertrain.values import InputError
from tests.program.test_program import PLAN, PROFILE
from tests.strategies import planned_problems

TABLE = """\
worker,op,role,peer,layers,rows,encoding,size_bytes,ahead
device,send,samples,edge,,2..4,uint8,300,
device,forward,,,1..1,0..1,,,
device,send,activations,edge,1,0..1,float32,2000,
device,receive,activation gradients,edge,1,0..1,float32,2000,
device,backward,,,1..1,0..1,,,
device,send,gradients,edge,1..1,,float32,500,
device,receive,weights,edge,1..1,,float32,500,
edge,receive,samples,device,,2..4,uint8,300,
edge,forward,,,1..1,2..4,,,
edge,receive,activations,device,1,0..1,float32,2000,
edge,forward,,,2..3,2..4 0..1,,,
edge,backward,,,2..3,2..4 0..1,,,
edge,send,activation gradients,device,1,0..1,float32,2000,
edge,backward,,,1..1,2..4,,,
edge,receive,gradients,device,1..1,,float32,500,
edge,update,,,1..3,,,,
edge,send,weights,device,1..1,,float32,500,
"""


@given(planned_problems())
def test_compiled_programs_are_read_back_as_they_are_and_pass_the_dry_run(given: tuple[Problem, Plan]) -> None:
    problem, plan = given
    program = compile_plan(plan, problem.profile.chain, problem.execution)
    assert from_csv(to_csv(program)) == program
    assert Program.model_validate_json(program.model_dump_json()) == program
    dry_run(program, problem.profile.chain)


def test_a_table_by_hand() -> None:
    assert to_csv(compile_plan(PLAN, PROFILE.chain, Execution.paper())) == TABLE


def test_a_table_that_a_spreadsheet_saved() -> None:
    """Columns in another order, the mark of UTF-8, other ends of lines, an empty one, single rows as ranges."""
    lines = [line.split(",") for line in TABLE.splitlines()]
    text = "\ufeff" + "\r\n".join(",".join(cells[::-1]) for cells in lines[:9]) + "\r\n,,,,,,,,\r\n"
    text += "\r\n".join(",".join(cells[::-1]) for cells in lines[9:]).replace("2..4 0..1", "2 3..4  0 1")
    assert from_csv(text) == from_csv(TABLE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("worker,op", "worker,what", "line 1: the columns are 'worker,what,.*; must be worker,op,role"),
        ("device,forward,,,1..1,0..1,,,", "device,forward", "line 3: has 2 cells; must have 9"),
        ("device,forward", "device,think", "line 3: op 'think': must be 'forward', "),
        ("send,samples", "send,thoughts", "line 2: role 'thoughts': must be 'samples', "),
        ("device,send,samples", "-,send,samples", "line 2: name '-': must be 1 to 64 letters"),
        ("samples,edge", "samples,e dge", "line 2: peer: name 'e dge': must be"),
        ("1..1,0..1,,,\n", "1-1,0..1,,,\n", "line 3: layers '1-1': must be two layers such as 1..5"),
        ("1..1,0..1,,,\n", "1..99999,0..1,,,\n", "line 3: last 99999: must be at most 10000"),
        ("1..1,0..1,,,\n", "1..1,1..0,,,\n", "line 3: rows '1..0': must be ranges"),
        ("1..1,0..1,,,\n", "1..1,0..9999999,,,\n", "line 3: rows 10000000: must be at most 1048576"),
        ("uint8,300", "uint8,3e2", "line 2: size_bytes '3e2': must be a whole number"),
        ("uint8,300,", "uint8,300,3", "line 2: ahead 3: must be at most 2"),
        ("uint8,300,", "uint8,300,-1", "line 2: ahead '-1': must be a whole number"),
        ("uint8,300", 'uint8,"300', "line 9: not CSV"),
        ("receive,samples,device", "send,samples,device", "device, edge would hold the data; must be one worker"),
        (TABLE.partition("\n")[2], "", "the table is empty"),
        ("forward", "update", "no row of the table has the op forward and rows"),
    ],
)
def test_what_is_no_table_is_told_with_line_and_column(old: str, new: str, message: str) -> None:
    assert old in TABLE
    with pytest.raises(InputError, match=message) as caught:
        from_csv(TABLE.replace(old, new))
    assert "\n" not in str(caught.value)


def test_whoever_starts_its_own_samples_holds_the_data() -> None:
    alone = f"{','.join(COLUMNS)}\nedge,forward,,,1..3,0..4,,,\nedge,backward,,,1..3,0..4,,,\nedge,update,,,1..3,,,,\n"
    program = from_csv(alone)
    assert (program.data_holder, program.batch_size) == ("edge", 5)
    dry_run(program, PROFILE.chain)
