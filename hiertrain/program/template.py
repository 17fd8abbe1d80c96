"""The iteration of every plan of one tree, with the amounts still open: one description, read by all.

The tasks of a tree are its workers' passes over their layers, the messages between workers and the update. Each has a
*lane*, on which tasks are served in the order of the template: a worker's processor, or one direction of a link.
What is open is each worker's depth and its own samples; amounts are sums over layers and over samples. The compiler
puts a plan's numbers in, the bounds a range of numbers, and the solver's model variables. Options of the execution are
passes over the template: none of its readers knows them. ``paper_template`` is the paper's execution (hierarchical
training stage): input, forward, backward, gradients up the tree, update at the root, weights down the tree.

The paper's iterations begin together, each when the one before has ended everywhere. Overlapped ones do not: tasks wait
for tasks of earlier iterations, lanes serve the tasks of one iteration after those of the one before, and what counts
is the *period*, the time from one iteration's end to the next one's in the steady state.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from hiertrain.problem.chain import Chain
from hiertrain.problem.tree import Tree
from hiertrain.program.actions import Op, Role

# A boundary between layers: the one at the depth of that worker, or, for None, the one before layer 1.
Cut = str | None
# Or the one after so many layers.
Boundary = Cut | int


@dataclass(frozen=True)
class After:
    """A task does not pass its boundary ``at`` before ``task`` has passed its boundary ``left``.

    The boundaries are of passes; a message and the update only begin and end.
    """

    task: int  # place in the template
    left: Boundary = None
    at: Boundary = None
    ago: int = 0  # of the iteration so many before


@dataclass(frozen=True)
class Pass:
    """One worker's way through layers 1 to its depth, forward or backward, for the samples that it has at each.

    It takes messages at its children's depths, or sends them there, but not both. One that has no children may send
    messages after any layer.
    """

    op: Op
    worker: str
    after: tuple[After, ...]

    @property
    def start(self) -> Cut:
        return None if self.op == Op.FORWARD else self.worker

    @property
    def end(self) -> Cut:
        return self.worker if self.op == Op.FORWARD else None

    @property
    def takes_inside(self) -> bool:
        return any(after.at != self.start for after in self.after)


@dataclass(frozen=True)
class Size:
    """Bytes of a message that belongs to boundary m: ``fixed[m]`` if it carries any samples, ``each[m]`` per sample."""

    fixed: tuple[int, ...]  # (N + 1,)
    each: tuple[int, ...]  # (N + 1,)


@dataclass(frozen=True)
class Message:
    """One message between two workers, of all that the boundary's worker carries; raw samples start on ``target``."""

    role: Role
    source: str
    target: str
    boundary: Cut  # that it belongs to; None: raw samples
    size: Size
    encoding: str
    after: tuple[After, ...]
    # There is such a message at boundaries above the first, up to the second; elsewhere nobody waits, its size is 0.
    present: tuple[int, int]
    stretch: tuple[int, int] = (0, 0)  # of layers, between two boundaries, whose parameters it carries up to its own
    ahead: int = 0  # it is for the iteration so many later


@dataclass(frozen=True)
class Update:
    """The optimizer's step over a worker's layers beyond the boundary ``below``, as far as they are in the stretch."""

    worker: str
    after: tuple[After, ...]
    stretch: tuple[int, int]  # from which boundary between layers, 0..N, to which
    below: Cut = None


Task = Pass | Message | Update


@dataclass(frozen=True)
class Template:
    """The tasks of a tree of active workers. Whatever a task waits for within an iteration stands before it."""

    tree: Tree
    depth: int  # N
    tasks: tuple[Task, ...]
    overlapped: bool = False  # iterations are not separated

    def __post_init__(self) -> None:
        """What its readers rely on, whatever a pass of an option makes of it."""
        children = self.tree.children_of
        for number, task in enumerate(self.tasks):
            assert all(after.task < number or after.ago for after in task.after), f"{task} waits for what stands after"
            assert self.overlapped or not any(after.ago for after in task.after), f"{task} waits for another iteration"
            if isinstance(task, Pass):
                assert all(after.at in (task.start, *children[task.worker]) for after in task.after), task
            elif isinstance(task, Message):
                for after in task.after:
                    other = self.tasks[after.task]
                    if isinstance(other, Pass) and after.left != other.end:
                        assert not other.takes_inside, f"{other} takes messages at cuts, and sends some there"
                        assert isinstance(after.left, str) or not children[other.worker], f"{other} has children"
                sizes = enumerate(zip(task.size.each, task.size.fixed, strict=True))
                low, high = task.present
                assert not any(any(size) for depth, size in sizes if task.boundary and not low < depth <= high), task

    @cached_property
    def lanes(self) -> dict[tuple[str, str], list[int]]:
        """The messages of each direction of a link, in their order."""
        lanes: dict[tuple[str, str], list[int]] = {}
        for number, task in enumerate(self.tasks):
            if isinstance(task, Message):
                lanes.setdefault((task.source, task.target), []).append(number)
        return lanes

    @cached_property
    def left_after(self) -> defaultdict[int, set[int]]:
        """The layers after which a pass, by its place, sends something at no child's depth."""
        found = defaultdict[int, set[int]](set)
        for after in (after for task in self.tasks for after in task.after):
            if isinstance(after.left, int):
                found[after.task].add(after.left)
        return found

    @cached_property
    def most_ago(self) -> int:
        """How many iterations back any task waits for."""
        return max((after.ago for task in self.tasks for after in task.after), default=0)

    @cached_property
    def last(self) -> tuple[int, ...]:
        """The tasks that no other waits for: the iteration ends with the last of them."""
        awaited = {after.task for task in self.tasks for after in task.after}
        return tuple(number for number in range(len(self.tasks)) if number not in awaited)

    def delays(self, number: int, credit: bool) -> list[tuple[int, int, bool]]:
        """The messages before one on its lane, the last of them first, and whether it may have to wait for each.

        Each with how many iterations ago it was sent: of overlapped ones those of the iteration before stand there,
        too. (All between two of the same message leave within a period, so that none further back can delay it more.)
        On a link without ``credit`` a message need not wait for those before which it is never ready; who waits for one
        may, behind that, wait for all before it. Those after the last that it may wait for are left out.
        """
        message = self.tasks[number]
        assert isinstance(message, Message)
        lane = self.lanes[message.source, message.target]
        place = lane.index(number)
        before = [(other, 0) for other in reversed(lane[:place])]
        if self.overlapped:
            before += [(other, 1) for other in reversed(lane[place + 1 :])]
        found, waits = [], credit
        for other, ago in before:
            waits = waits or not self._follows(number, other, ago)
            found.append((other, ago, waits))
        return found if waits else []

    def _follows(self, later: int, earlier: int, ago: int) -> bool:
        """Whether one message is never ready before another of some iterations ago, if sent at all, has arrived."""
        message = self.tasks[earlier]
        assert isinstance(message, Message)
        seen, open_ = set(), [(later, 0)]
        while open_:
            number, back = open_.pop()
            awaited = {(after.task, back + after.ago) for after in self.tasks[number].after}
            for other, before in {(other, before) for other, before in awaited if before <= ago} - seen:
                if (other, before) == (earlier, ago):
                    return True
                seen.add((other, before))
                task = self.tasks[other]
                # Who waits for a message that may not be there may not wait at all.
                there = True
                if isinstance(task, Message) and task.present != (0, self.depth):
                    low, high = message.present
                    there = task.boundary == message.boundary and task.present[0] <= low and high <= task.present[1]
                if there:
                    open_.append((other, before))
        return False


def paper_template(
    tree: Tree, chain: Chain, data_holder: str, stretches: tuple[tuple[int, int], ...] | None = None
) -> Template:
    """The paper's synchronous iteration. Raw samples travel as uint8, all else as float32.

    ``stretches``: of layers, each between two boundaries, from layer 1 to N, whose parameters travel and are updated by
    themselves, the last ones first; None: all at once.
    """
    tasks: list[Task] = []
    backward = _add_passes(tasks, tree, chain, data_holder)
    _add_updates(tasks, tree, chain, backward, stretches or ((0, chain.depth),))
    return Template(tree, chain.depth, tuple(tasks))


def _add(tasks: list[Task], task: Task) -> int:
    tasks.append(task)
    return len(tasks) - 1


def _add_passes(tasks: list[Task], tree: Tree, chain: Chain, data_holder: str) -> dict[str, int]:
    """Raw samples, every worker's two passes and the messages at cuts. Returns the backward passes' places."""
    none = (0,) * (chain.depth + 1)
    raw = Size(none, (chain.sample_bytes, *none[1:]))
    outputs = Size(none, (0, *(layer.output_bytes for layer in chain.layers[:-1]), 0))  # the loss sends nothing
    parent, children = tree.parent_of, tree.children_of

    def at_cut(role: Role, source: str, target: str, child: str, after: After) -> int:
        # Who computes the loss sends no activations.
        return _add(tasks, Message(role, source, target, child, outputs, "float32", (after,), (0, chain.depth - 1)))

    inputs = {
        name: _add(tasks, Message(Role.SAMPLES, data_holder, name, None, raw, "uint8", (), (0, chain.depth)))
        for name in tree.workers
        if name != data_holder
    }
    forward, activations = {}, {}
    for name in tree.upward:
        own = [After(inputs[name])] if name in inputs else []
        taken = [After(activations[child], at=child) for child in children[name]]
        forward[name] = _add(tasks, Pass(Op.FORWARD, name, (*own, *taken)))
        if name in parent:
            ready = After(forward[name], left=name)
            activations[name] = at_cut(Role.ACTIVATIONS, name, parent[name], name, ready)
    backward = {}
    for name in tree.workers:
        awaited = [After(forward[name], left=name, at=name)]
        if name in parent:
            ready = After(backward[parent[name]], left=name)
            number = at_cut(Role.ACTIVATION_GRADIENTS, parent[name], name, name, ready)
            awaited.append(After(number, at=name))
        backward[name] = _add(tasks, Pass(Op.BACKWARD, name, tuple(awaited)))
    return backward


def _add_updates(
    tasks: list[Task], tree: Tree, chain: Chain, backward: dict[str, int], stretches: tuple[tuple[int, int], ...]
) -> None:
    """Gradients up the tree, the root's updates and weights down the tree, for one stretch after the other."""
    parent, children = tree.parent_of, tree.children_of
    owners = tree.workers[: tree.alone + 1]  # who may have to send weights on while others still send gradients
    has_weights: dict[tuple[str, tuple[int, int]], int] = {}

    def parameters(role: Role, source: str, target: str, child: str, stretch: tuple[int, int], *after: After) -> int:
        low, high = stretch
        prefix, none = chain.parameter_prefix_bytes, (0,) * (chain.depth + 1)
        size = Size(tuple(prefix[min(high, depth)] - prefix[min(low, depth)] for depth in range(len(prefix))), none)
        return _add(tasks, Message(role, source, target, child, size, "float32", after, (low, chain.depth), stretch))

    def weights(name: str, stretch: tuple[int, int]) -> None:
        ready = After(has_weights[parent[name], stretch])
        has_weights[name, stretch] = parameters(Role.WEIGHTS, parent[name], name, name, stretch, ready)

    updated: tuple[After, ...] = ()
    for stretch in reversed(stretches):
        gradients: dict[str, int] = {}
        for name in tree.upward:
            # Who has children goes on once all have gone back to it: till then it waits for none of their gradients.
            left = stretch[0] or None if name in parent and not children[name] else None
            summed = After(backward[name], left=left), *(After(gradients[child]) for child in children[name])
            if name in parent:
                gradients[name] = parameters(Role.GRADIENTS, name, parent[name], name, stretch, *summed)
            else:  # the root, which has them all
                has_weights[name, stretch] = _add(tasks, Update(name, (*summed, *updated), stretch))
                updated = (After(has_weights[name, stretch]),)
        for name in (name for name in parent if parent[name] in owners):
            weights(name, stretch)
    for stretch in reversed(stretches):
        for name in (name for name in parent if parent[name] not in owners):
            weights(name, stretch)
