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
from hiertrain.program.template import Boundary, Message, Pass, Template, Update


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
        self.depth: dict[Boundary, int] = {None: 0, **{name: part.depth for name, part in plan.workers.items()}}
        self.depth |= {layer: layer for layer in range(template.depth + 1)}
        own = {name: plan.own_rows(name) for name in plan.workers}
        self.own: dict[str, Rows] = {name: joined(((rows.start, rows.stop),)) for name, rows in own.items()}
        self.held: dict[str, Rows] = {}  # after the last layer of each worker
        for name in template.tree.upward:
            self.held[name] = self._rows(name, template.depth)
        self.inside = self._inside()
        self.cuts: dict[str, set[int]] = defaultdict(set)  # of each worker's passes
        for number, events in self.inside.items():
            task = template.tasks[number]
            assert isinstance(task, Pass)
            self.cuts[task.worker] |= {event.boundary for event in events}

    def _rows(self, worker: str, layer: int) -> Rows:
        """The rows that a worker has in a layer: its own, then those of each child that it took over before."""
        taken = (self.held[child] for child in self.children[worker] if self.depth[child] < layer)
        return joined(self.own[worker], *taken)

    def actions(self) -> dict[str, tuple[Action, ...]]:
        """The actions of each participant, in the order of the template.

        What is received is taken when something has to wait for it: else, and for later iterations, at the end.
        """
        found: dict[str, list[Action]] = {name: [] for name in self.plan.participants}
        taken = {event.message for events in self.inside.values() for event in events if event.op == Op.RECEIVE}
        sent = {event.message for events in self.inside.values() for event in events if event.op == Op.SEND}

        def take(number: int) -> None:
            message = self.template.tasks[number]
            if isinstance(message, Message) and number not in taken:
                taken.add(number)
                found[message.target] += self._message(Op.RECEIVE, number)

        for number, task in enumerate(self.template.tasks):
            worker = task.source if isinstance(task, Message) else task.worker
            for after in task.after:
                other = self.template.tasks[after.task]
                if isinstance(other, Message) and (other.target, other.ahead) == (worker, after.ago):
                    take(after.task)
            if isinstance(task, Pass):
                found[worker] += self._pass(task, self.inside[number])
            elif isinstance(task, Update):
                low, high = task.stretch
                first, last = max(low, self.depth[task.below]) + 1, min(high, self.depth[worker])
                if first <= last:
                    found[worker].append(Action(op=Op.UPDATE, first=first, last=last))
            elif number not in sent:
                found[worker] += self._message(Op.SEND, number)
        for number in range(len(self.template.tasks)):
            take(number)
        return {name: tuple(actions) for name, actions in found.items() if actions}

    def _inside(self) -> dict[int, list[_Event]]:
        """What happens within each pass, between its start and its end."""
        found: dict[int, list[_Event]] = defaultdict(list)
        for number, task in enumerate(self.template.tasks):
            for after in task.after:
                other = self.template.tasks[after.task]
                if isinstance(task, Message) and isinstance(other, Pass) and after.left not in (other.start, other.end):
                    if self._sent(task):
                        found[after.task].append(_Event(self.depth[after.left], Op.SEND, number))
                elif isinstance(other, Message) and isinstance(task, Pass) and after.at not in (task.start, task.end):
                    found[number].append(_Event(self.depth[after.at], Op.RECEIVE, after.task))
        return found

    def _pass(self, task: Pass, inside: list[_Event]) -> list[Action]:
        """The actions of a pass, cut where messages come or go; of a backward one from its end, then reversed.

        Both passes of a worker are cut alike: a backward action goes back through what one forward action computed.
        """
        steps: list[Action] = []
        position = 0
        for boundary in sorted({*self.cuts[task.worker], self.depth[task.worker]}):
            rows = self._rows(task.worker, position + 1)
            if boundary > position and rows:
                steps.append(Action(op=task.op, first=position + 1, last=boundary, rows=rows))
            position = boundary
            for event in inside:
                if event.boundary == boundary:
                    steps += self._message(event.op, event.message)
        return steps if task.op == Op.FORWARD else steps[::-1]

    def _sent(self, message: Message) -> bool:
        """Whether there is such a message."""
        low, high = message.present
        if message.boundary is None:
            return bool(self.own[message.target])
        return low < self.depth[message.boundary] <= high

    def _message(self, op: Op, number: int) -> Iterator[Action]:
        """One side of a message, if it is sent at all."""
        message = self.template.tasks[number]
        assert isinstance(message, Message)
        if not self._sent(message):
            return
        rows = self.own[message.target] if message.boundary is None else self.held[message.boundary]
        boundary, (low, high) = self.depth[message.boundary], message.stretch
        samples = sum(end - start for start, end in rows)
        parameters = message.role in PARAMETERS
        yield Action(
            op=op,
            role=message.role,
            peer=message.target if op == Op.SEND else message.source,
            first=low + 1 if parameters else 0,
            last=min(high, boundary) if parameters else boundary,
            rows=() if parameters else rows,
            encoding=message.encoding,
            size_bytes=message.size.fixed[boundary] + message.size.each[boundary] * samples,
            ahead=message.ahead if op == Op.SEND else 0,
        )
