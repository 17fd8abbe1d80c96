"""The options of an execution as passes: each takes a template and an execution, and returns the template it makes.

To add an option: a field of ``Execution``, a pass here, and a codec of the runtime where numbers travel otherwise.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

from hiertrain.problem.chain import Chain
from hiertrain.problem.execution import Execution
from hiertrain.problem.tree import Tree
from hiertrain.program.actions import COMPRESSED, CUT, MOST_AHEAD, PARAMETERS, Op, Program, Role
from hiertrain.program.template import After, Message, Pass, Size, Task, Template, Update, paper_template

LEAST_BUCKET_BYTES = 65_536


@dataclass(frozen=True)
class Encoding:
    """How numbers travel: by which codec, and in how many bytes per number and per message."""

    codec: str
    number_bytes: int
    message_bytes: int = 0  # where there are any numbers
    loss: str | None = None  # what makes it lose something; None: it does not

    def encoded(self, plain_bytes: int, number_bytes: int) -> int:
        """Bytes of numbers that have ``number_bytes`` each by themselves; what a message has besides is not counted."""
        return plain_bytes * self.number_bytes // number_bytes


def _halves(loss: str) -> dict[str, Encoding]:
    return {name: Encoding(name, 2, loss=loss) for name in ("float16", "bfloat16")}


# By zlib, of the bytes of compressed samples: see ``template_of``.
SAMPLES = {"uint8": Encoding("uint8", 1), "float32": Encoding("float32", 4), COMPRESSED: Encoding(COMPRESSED, 1)}
# 8 bits per number between the least and the greatest of a message, which stand before them as float32.
ACTIVATIONS = {"float32": Encoding("float32", 4), "uint8": Encoding("scaled-uint8", 1, 8, "8-bit activations")}
ACTIVATIONS |= _halves("half-precision activations")
WEIGHTS = {"float32": Encoding("float32", 4)} | _halves("half-precision parameters")
# What each role may travel as, and the bytes of a number in the sizes of a chain.
ENCODINGS = {
    Role.SAMPLES: (1, SAMPLES),
    **dict.fromkeys(CUT, (4, ACTIVATIONS)),
    **dict.fromkeys(PARAMETERS, (4, WEIGHTS)),
}


def encode_samples(template: Template, execution: Execution) -> Template:
    """Raw samples in another encoding than uint8."""
    return _encoded(template, (Role.SAMPLES,), SAMPLES[execution.sample_encoding])


def encode_activations(template: Template, execution: Execution) -> Template:
    """Activations and their gradients in another encoding than float32."""
    return _encoded(template, CUT, ACTIVATIONS[execution.activation_encoding])


def encode_parameters(template: Template, execution: Execution) -> Template:
    """Weights and their gradients in another encoding than float32."""
    return _encoded(template, PARAMETERS, WEIGHTS[execution.parameter_encoding])


def own_layers(template: Template, _: Execution) -> Template:
    """Each layer is updated by its owner. The tree says who that is: see ``Tree.alone``.

    The update of a worker below the root stands where its gradients would have left, and nobody else waits for it.
    """
    owners = template.tree.workers[: template.tree.alone + 1]
    if len(owners) == 1:  # the root updates all
        return template
    below = dict(pairwise(owners))
    tasks: list[Task] = []
    updates: dict[tuple[str, tuple[int, int]], int] = {}  # by worker and stretch
    place: dict[int, int] = {}  # by the one before
    for number, task in enumerate(template.tasks):
        if isinstance(task, Message) and task.role == Role.WEIGHTS and task.target in owners:
            place[number] = updates[task.target, task.stretch]
            continue
        after = tuple(replace(one, task=place[one.task]) for one in task.after if one.task in place)
        worker = _complete_on(task)
        if worker in owners:
            assert not isinstance(task, Pass)
            if isinstance(task, Update):
                place[number] = len(tasks)
            else:  # as on the root: behind the whole pass, one update after the other
                after = tuple(replace(one, left=None) for one in after)
                after += tuple(After(before) for (own, _), before in updates.items() if own == worker)[-1:]
            updates[worker, task.stretch] = len(tasks)
            tasks.append(Update(worker, after, task.stretch, below.get(worker)))
        else:
            place[number] = len(tasks)
            tasks.append(replace(task, after=after))
    return replace(template, tasks=tuple(tasks))


def _complete_on(task: Task) -> str | None:
    """The worker that has the gradients of its subtree, where the task sends or uses them."""
    if isinstance(task, Update):
        return task.worker
    return task.source if isinstance(task, Message) and task.role == Role.GRADIENTS else None


def prefetch_samples(template: Template, execution: Execution) -> Template:
    """Iterations overlap: raw samples travel while earlier iterations compute, and nothing separates these.

    On each link the samples queue behind the last that the data holder sends in an iteration, so that they delay
    nothing of it. A worker has a buffer for each iteration on the way, and waits for its new weights alone.
    """
    if not execution.prefetch:
        return template
    tasks = template.tasks
    # Who has passed this has ended the iteration: it has the new weights.
    ended = {
        task.worker if isinstance(task, Update) else task.target: number
        for number, task in enumerate(tasks)
        if isinstance(task, Update) or (isinstance(task, Message) and task.role == Role.WEIGHTS)
    }
    behind = {
        number: _last_of_sender(template, task)
        for number, task in enumerate(tasks)
        if isinstance(task, Message) and task.role == Role.SAMPLES
    }
    order = []
    for number in (*(number for number in range(len(tasks)) if number not in behind), None):
        order += [] if number is None else [number]
        order += [samples for samples, last in behind.items() if last == number]
    place = {number: position for position, number in enumerate(order)}
    alone = template.tree.workers[: template.tree.alone]

    def moved(number: int) -> Task:
        task, after = tasks[number], tasks[number].after
        if isinstance(task, Pass) and task.op == Op.FORWARD:
            after = (
                *(replace(one, ago=MOST_AHEAD * (one.task in behind)) for one in after),
                After(ended[task.worker], ago=1),
            )
        if number in behind:
            assert isinstance(task, Message)
            last = behind[number]
            task = replace(task, ahead=MOST_AHEAD)
            ready = () if last is None else tasks[last].after if isinstance(tasks[last], Message) else (After(last),)
            after = *ready, After(ended[task.target], ago=1)
        elif isinstance(task, Message) and task.role == Role.ACTIVATIONS and task.target in alone:
            # Its child may be ahead of it, and has to wait for its buffer. All others get new weights from above first.
            after = *after, After(ended[task.target], ago=1)
        return replace(task, after=tuple(replace(one, task=place[one.task]) for one in after))

    return replace(template, tasks=tuple(map(moved, order)), overlapped=True)


def _last_of_sender(template: Template, samples: Message) -> int | None:
    """The last that the sender of raw samples does, on that link or for an update; None: it only sends samples."""
    on_link = [n for n in template.lanes[samples.source, samples.target] if template.tasks[n] != samples]
    at_last = [number for number, task in enumerate(template.tasks) if _complete_on(task) == samples.source]
    return max((*on_link[-1:], *at_last[-1:]), default=None)


PASSES: tuple[Callable[[Template, Execution], Template], ...] = (
    encode_samples,
    encode_activations,
    encode_parameters,
    own_layers,
    prefetch_samples,
)


def template_of(tree: Tree, chain: Chain, data_holder: str, execution: Execution) -> Template:
    """The template of a tree under an execution.

    Compressed samples have their mean size. Raises InputError where the chain does not know it.
    """
    chain = chain.model_copy(update={"sample_bytes": chain.sent_sample_bytes(execution)})
    template = paper_template(tree, chain, data_holder, buckets(chain) if execution.buckets else None)
    for apply in PASSES:
        template = apply(template, execution)
    return template


def _encoded(template: Template, roles: Collection[Role], encoding: Encoding) -> Template:
    """Messages of these roles in another encoding than their plain one."""

    @cache
    def sized(size: Size, number_bytes: int) -> Size:
        each = tuple(encoding.encoded(own, number_bytes) for own in size.each)
        fixed = tuple(encoding.encoded(own, number_bytes) for own in size.fixed)
        besides = (encoding.message_bytes * (a > 0 or b > 0) for a, b in zip(fixed, each, strict=True))
        return Size(tuple(own + more for own, more in zip(fixed, besides, strict=True)), each)

    tasks = tuple(
        replace(task, size=sized(task.size, ENCODINGS[task.role][0]), encoding=encoding.codec)
        if isinstance(task, Message) and task.role in roles
        else task
        for task in template.tasks
    )
    return replace(template, tasks=tasks)


def buckets(chain: Chain) -> tuple[tuple[int, int], ...]:
    """Stretches of consecutive layers whose parameters travel together.

    Each has at least ``LEAST_BUCKET_BYTES``, since a message has a cost of its own, and at least half as much as all
    below it: workers compute the first layers up to any depth, and what is left to send when all is computed is then
    little, with few messages.
    """
    prefix, ends, low = chain.parameter_prefix_bytes, [0], 0
    for depth in range(1, chain.depth + 1):
        size = prefix[depth] - prefix[low]
        if size >= max(LEAST_BUCKET_BYTES, prefix[low] // 2):
            ends.append(depth)
            low = depth
    ends[-1 if len(ends) > 1 else len(ends) :] = [chain.depth]  # what is left belongs to the last one
    return tuple(pairwise(ends))


def lossy_layers(program: Program, chain: Chain) -> tuple[str, ...]:
    """The layers up to which a program sends less than all, each with its cause.

    What ``Chain.inexact_layers`` cannot know: they make training differ from single-machine SGD.
    """
    causes: dict[tuple[Role | None, str | None], str | None] = {
        (role, encoding.codec): encoding.loss for role, (_, known) in ENCODINGS.items() for encoding in known.values()
    }
    sent = (action for own in program.actions.values() for action in own if action.size_bytes)
    lossy = {(action.last, cause) for action in sent if (cause := causes.get((action.role, action.encoding)))}
    names = "samples", *(layer.name for layer in chain.layers)
    return tuple(f"{names[depth]}: {cause}" for depth, cause in sorted(lossy))
