"""A plan's numbers in the template of its tree: the program that workers execute."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from hiertrain.problem.chain import Chain
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan, check_plan
from hiertrain.problem.tree import tree_of
from hiertrain.program.actions import PARAMETERS, Action, Op, Program, Rows, joined
from hiertrain.program.passes import template_of
from hiertrain.program.template import Boundary, Message, Pass, Template


class _Event(NamedTuple):
    """One side of a message within a pass: at which depth, which side, and the message's place in the template."""

    boundary: int
    op: Op
    message: int


def compile_plan(plan: Plan, chain: Chain, execution: Execution) -> Program:
    """Lower a plan to a program. Raises InputError when the plan does not fit the chain.

    Tasks of nothing are left out; neighbouring layers of a pass are one action.
    """
    check_plan(plan, chain)
    template = template_of(tree_of(plan, execution), chain, plan.data_holder, execution)
    return Program(
        batch_size=plan.batch_size,
        data_holder=plan.data_holder,
        overlapped=template.overlapped,
        actions=_Lowered(plan, template).actions(),
    )


class _Lowered:
    """The template of a plan's tree with its numbers."""

    def __init__(self, plan: Plan, template: Template) -> None:
        self.plan, self.template, self.children = plan, template, template.tree.children_of
        self.depth: dict[Boundary, int] = {None: 0} | {name: part.depth for name, part in plan.workers.items()}
        own = {name: plan.own_rows(name) for name in plan.workers}
        self.own: dict[str, Rows] = {name: joined(((rows.start, rows.stop),)) for name, rows in own.items()}
        self.held: dict[str, Rows] = {}  # after the last layer of each worker
        for name in template.tree.upward:
            self.held[name] = self._rows(name, template.depth)

    def _rows(self, worker: str, layer: int) -> Rows:
        """The rows that a worker has in a layer: its own, then those of each child that it took over before."""
        taken = (self.held[child] for child in self.children[worker] if self.depth[child] < layer)
        return joined(self.own[worker], *taken)

    def actions(self) -> dict[str, tuple[Action, ...]]:
        """The actions of each participant, in the order of the template."""
        found: dict[str, list[Action]] = {name: [] for name in self.plan.participants}
        inside = self._inside()
        elsewhere = {(event.op, event.message) for events in inside.values() for event in events}
        for number, task in enumerate(self.template.tasks):
            if isinstance(task, Pass):
                for early in self._early(task):
                    found[task.worker] += self._message(Op.RECEIVE, early)
                found[task.worker] += self._pass(task, inside[number])
            elif isinstance(task, Message):
                for op, worker in ((Op.SEND, task.source), (Op.RECEIVE, task.target)):
                    if (op, number) not in elsewhere and not (op == Op.RECEIVE and task.ahead):
                        found[worker] += self._message(op, number)
            else:
                low, high = task.stretch
                first, last = max(low, self.depth[task.below]) + 1, min(high, self.depth[task.worker])
                if first <= last:
                    found[task.worker].append(Action(op=Op.UPDATE, first=first, last=last))
        return {name: tuple(actions) for name, actions in found.items() if actions}

    def _early(self, task: Pass) -> list[int]:
        """The messages that a pass waits for and that were sent in earlier iterations: it begins by taking them."""
        messages = {after.task: self.template.tasks[after.task] for after in task.after}
        return [number for number, other in messages.items() if isinstance(other, Message) and other.ahead]

    def _inside(self) -> dict[int, list[_Event]]:
        """What happens within each pass, between its start and its end."""
        found: dict[int, list[_Event]] = defaultdict(list)
        for number, task in enumerate(self.template.tasks):
            for after in task.after:
                other = self.template.tasks[after.task]
                if isinstance(task, Message) and isinstance(other, Pass) and after.left not in (other.start, other.end):
                    found[after.task].append(_Event(self.depth[after.left], Op.SEND, number))
                elif isinstance(other, Message) and isinstance(task, Pass) and after.at not in (task.start, task.end):
                    found[number].append(_Event(self.depth[after.at], Op.RECEIVE, after.task))
        return found

    def _pass(self, task: Pass, inside: list[_Event]) -> list[Action]:
        """The actions of a pass, cut where messages come or go; of a backward one from its end, then reversed."""
        steps: list[Action] = []
        position = 0
        cuts = sorted(inside, key=lambda event: event.boundary)  # those at one depth keep their order
        for boundary, event in [*((cut.boundary, cut) for cut in cuts), (self.depth[task.worker], None)]:
            rows = self._rows(task.worker, position + 1)
            if boundary > position and rows:
                steps.append(Action(op=task.op, first=position + 1, last=boundary, rows=rows))
            position = boundary
            if event is not None:
                steps += self._message(event.op, event.message)
        return steps if task.op == Op.FORWARD else steps[::-1]

    def _message(self, op: Op, number: int) -> Iterator[Action]:
        """One side of a message, if it is sent at all."""
        message = self.template.tasks[number]
        assert isinstance(message, Message)
        boundary = self.depth[message.boundary]
        rows = self.own[message.target] if message.boundary is None else self.held[message.boundary]
        if boundary > message.deepest or (message.boundary is None and not rows):
            return
        samples = sum(end - start for start, end in rows)
        parameters = message.role in PARAMETERS
        yield Action(
            op=op,
            role=message.role,
            peer=message.target if op == Op.SEND else message.source,
            first=int(parameters),
            last=boundary,
            rows=() if parameters else rows,
            encoding=message.encoding,
            size_bytes=message.size.fixed[boundary] + message.size.each[boundary] * samples,
            ahead=message.ahead if op == Op.SEND else 0,
        )
