"""A program as a table that a person can read and edit: CSV, one row per action, in the order of each worker.

The columns are worker, op, role, peer, layers, rows, encoding, size_bytes and ahead; what does not apply is left empty.
Ranges include both ends, as everywhere in print: layers ``1..5`` are computed, or their parameters travel, while
activations and their gradients have the one layer after which the model is cut, ``5``. Rows of the mini-batch count
from 0, in the order in which they lie in the tensor: ``0..63 100 110..120``. (Dashes would be dates to a spreadsheet.)
Where iterations overlap, ``ahead`` says for which one an action is: 0 is the one that the worker is in, 2 the one after
the next. Elsewhere it is empty.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from hiertrain.program.actions import Action, Op, Program, Role, Rows, joined, rows_text
from hiertrain.values import MOST_WORKERS, InputError, broken_rule, check_name, shown

COLUMNS = ("worker", "op", "role", "peer", "layers", "rows", "encoding", "size_bytes", "ahead")
RANGE = re.compile(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?", flags=re.ASCII)


def to_csv(program: Program) -> str:
    """The table of a program. Batch size and data holder are not in it: ``from_csv`` derives them."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for worker, actions in program.actions.items():
        table.writerows((worker, *_cells(action), action.ahead if program.overlapped else "") for action in actions)
    return text.getvalue()


def from_csv(text: str) -> Program:
    """The program of a table. The rows of one worker are its actions in order, wherever else they stand.

    The data holder is the worker that sends raw samples, or else the one that computes layer 1 for rows that it has not
    received. The batch size is that of rows 0..B-1 that reach the loss, which is the last layer of any forward action.
    Iterations overlap if ``ahead`` is given anywhere; then it is 0 where it is not.
    Raises InputError that names the line, the column, the value and the rule. Whether the program can be executed, the
    dry run says.
    """
    actions: dict[str, list[Action]] = {}
    overlapped = False
    for line, cells in _lines(text):
        overlapped = overlapped or bool(cells["ahead"])
        try:
            actions.setdefault(check_name(cells["worker"]), []).append(_action(cells))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            value = "" if problem["type"] == "value_error" else f" {shown(problem['input'])}"
            raise InputError(f"line {line}: {problem['loc'][0]}{value}: {broken_rule(problem)}") from None
        except ValueError as error:
            raise InputError(f"line {line}: {error}") from None
    if not actions:
        raise InputError("the table is empty; must have one row per action")
    if len(actions) > MOST_WORKERS:
        raise InputError(f"the table has {len(actions)} workers; must have at most {MOST_WORKERS}")
    done = {worker: tuple(own) for worker, own in actions.items()}
    try:
        return Program(
            batch_size=_batch_size(done), data_holder=_data_holder(done), overlapped=overlapped, actions=done
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InputError(f"batch size {shown(problem['input'])}: {broken_rule(problem)}") from None


def _lines(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The number of each line that is not empty, and its cells by column. Raises InputError."""
    table = csv.reader(io.StringIO(text.removeprefix("\ufeff")), strict=True)  # a spreadsheet's mark of UTF-8
    try:
        header = tuple(cell.strip() for cell in next(table, []))
        if sorted(header) != sorted(COLUMNS):
            raise InputError(f"line 1: the columns are {shown(','.join(header))}; must be {','.join(COLUMNS)}")
        for cells in table:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(COLUMNS):
                raise InputError(f"line {table.line_num}: has {len(cells)} cells; must have {len(COLUMNS)}")
            yield table.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise InputError(f"line {table.line_num}: not CSV: {error}") from None


def _cells(action: Action) -> tuple[str, ...]:
    layers = f"{action.first}..{action.last}" if action.first else str(action.last or "")
    size = str(action.size_bytes) if action.role else ""
    return action.op, action.role or "", action.peer or "", layers, rows_text(action.rows), action.encoding or "", size


def _action(cells: Mapping[str, str]) -> Action:
    """One row. Raises ValueError and ValidationError, which is one."""
    first, last = _layers(cells["layers"])
    for column in ("size_bytes", "ahead"):
        if not re.fullmatch("[0-9]{0,15}", cells[column]):
            raise ValueError(f"{column} {shown(cells[column])}: must be a whole number")
    content = {
        "op": cells["op"],
        "role": cells["role"] or None,
        "peer": cells["peer"] or None,
        "first": first,
        "last": last,
        "rows": _rows(cells["rows"]),
        "encoding": cells["encoding"] or None,
        "size_bytes": int(cells["size_bytes"] or 0),
        "ahead": int(cells["ahead"] or 0),
    }
    return Action.model_validate(content)


def _layers(text: str) -> tuple[int, int]:
    if not text:
        return 0, 0
    if not (found := RANGE.fullmatch(text)):
        raise ValueError(f"layers {shown(text)}: must be two layers such as 1..5, or one that a cut comes after")
    return (int(found[1]), int(found[2])) if found[2] else (0, int(found[1]))


def _rows(text: str) -> Rows:
    rows = []
    for part in text.split():
        found = RANGE.fullmatch(part)
        start, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if start > last:
            raise ValueError(f"rows {shown(part)}: must be ranges from a row to one that is not before it: 0..63 100")
        rows.append((start, last + 1))
    return joined(tuple(rows))


def _batch_size(actions: Mapping[str, tuple[Action, ...]]) -> int:
    forward = [action for own in actions.values() for action in own if action.op == Op.FORWARD and action.rows]
    if not forward:
        raise InputError(f"no row of the table has the op {Op.FORWARD} and rows; must compute the loss of some")
    loss = max(action.last for action in forward)
    return max(end for action in forward if action.last == loss for _, end in action.rows)


def _data_holder(actions: Mapping[str, tuple[Action, ...]]) -> str:
    def having(op: Op, role: Role | None) -> list[str]:
        return [name for name, own in actions.items() if any((a.op, a.role) == (op, role) for a in own)]

    given = having(Op.RECEIVE, Role.SAMPLES)
    starting = [name for name, own in actions.items() if any(a.op == Op.FORWARD and a.first == 1 for a in own)]
    holders = having(Op.SEND, Role.SAMPLES) or [name for name in starting if name not in given]
    if len(holders) != 1:
        found = ", ".join(holders) or "no worker"
        raise InputError(f"{found} would hold the data; must be one worker, which sends samples or starts its own")
    return holders[0]
