"""The dry run: whatever could go wrong when workers execute a program, found before any of them starts.

A program may have been edited by a person. Three looks at it: the form of each action, with the size of its message;
the order, replayed without times; and the data, followed through every worker's hands. The runtime joins and splits
tensors by the same rules without checking them again, and its transport would end the process for a wrong size. What
passes trains exactly as one process does, but for what the model and lossy encodings change.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hiertrain.problem.chain import Chain
from hiertrain.program.actions import PARAMETERS, Action, Op, Program, Role, Rows, joined, rows_shown
from hiertrain.program.passes import ENCODINGS
from hiertrain.program.simulator import check_messages
from hiertrain.values import InputError, shown


def dry_run(program: Program, chain: Chain) -> None:
    """Raise InputError unless the program trains the chain.

    It is one line that names the worker, the position in its program, the action, both values and the rule.
    """
    if program.data_holder not in program.actions:
        raise InputError(
            f"program: the data holder {program.data_holder!r} has no actions; must be one of "
            f"{', '.join(program.actions) or 'the workers'}"
        )
    for worker, actions in program.actions.items():
        if not actions:
            raise InputError(f"program: worker {worker!r} has 0 actions; must have at least 1, or be left out")
        for position, action in enumerate(actions):
            if fault := _fault(action, worker, program, chain):
                raise InputError(f"{_place(worker, position, action)}: {fault}")
    check_messages(program)
    for layer in range(1, chain.depth + 1):
        updating = [
            name
            for name, actions in program.actions.items()
            for action in actions
            if action.op == Op.UPDATE and action.first <= layer <= action.last
        ]
        if len(updating) != 1:
            found = ", ".join(updating) or "no worker"
            raise InputError(f"program: {found} will update layer {layer}; must be one worker, once")
    reached = [action.rows for worker in program.actions for action in _Hands(program, worker, chain.depth).follow()]
    if wrong := _miscounted(reached, program.batch_size):
        raise InputError(f"program: {wrong}; every row from 0 to {program.batch_size - 1} must reach it once")


def _place(worker: str, position: int, action: Action) -> str:
    return f"program: {worker}, action {position + 1} ({action})"


def _fault(action: Action, worker: str, program: Program, chain: Chain) -> str | None:
    """What is wrong with the form of one action, whatever the others are."""
    message = action.op in (Op.SEND, Op.RECEIVE)
    said = {"role": action.role, "peer": action.peer, "encoding": action.encoding}
    for name, value in said.items():
        if message != (value is not None):
            return f"{name} {shown(value)}; {'a message needs one' if message else 'only messages have one'}"
    if message and (action.peer == worker or action.peer not in program.actions):
        others = ", ".join(name for name in program.actions if name != worker)
        return f"peer {action.peer!r}; must be another worker of the program: {others or 'there is none'}"
    if action.ahead and not (program.overlapped and (action.op, action.role) == (Op.SEND, Role.SAMPLES)):
        return f"ahead {action.ahead}; only raw samples are sent ahead, and only where iterations overlap"
    return _fault_of_layers(action, chain) or _fault_of_rows(action, program, chain) or _fault_of_size(action, chain)


def _fault_of_layers(action: Action, chain: Chain) -> str | None:
    first, last, depth = action.first, action.last, chain.depth
    match action.op, action.role:
        case ((Op.FORWARD | Op.BACKWARD | Op.UPDATE), _) | (_, (Role.GRADIENTS | Role.WEIGHTS)):
            fits, rule = 1 <= first <= last <= depth, f"must be a range within 1..{depth}"
        case _, Role.SAMPLES:
            fits, rule = (first, last) == (0, 0), "raw samples have none"
        case _:  # the loss sends nothing
            fits, rule = first == 0 and 1 <= last < depth, f"a cut comes after one layer from 1 to {depth - 1}"
    return None if fits else f"layers {first}..{last} ({chain.model} has {depth}); {rule}"


def _fault_of_rows(action: Action, program: Program, chain: Chain) -> str | None:
    if action.op == Op.UPDATE or action.role in PARAMETERS:
        return f"rows {rows_shown(action.rows)}; parameters have none" if action.rows else None
    if not action.rows or any(not start < end <= program.batch_size for start, end in action.rows):
        return f"rows {rows_shown(action.rows)}; must be some of 0..{program.batch_size - 1}"
    if joined(action.rows) != action.rows:
        return f"rows {rows_shown(action.rows)}; ranges that touch must be one"
    if action.op == Op.FORWARD:
        layer = max(chain.layers[action.first - 1 : action.last], key=lambda layer: layer.least_samples)
        if action.samples < layer.least_samples:
            return f"{action.samples} rows; layer {layer.name} takes at least {layer.least_samples}"
    return None


def _fault_of_size(action: Action, chain: Chain) -> str | None:
    if action.role is None:
        return f"size_bytes {action.size_bytes}; only messages have one" if action.size_bytes else None
    number_bytes, known = ENCODINGS[action.role]
    encoding = next((encoding for encoding in known.values() if encoding.codec == action.encoding), None)
    if encoding is None:
        codecs = ", ".join(encoding.codec for encoding in known.values())
        return f"encoding {action.encoding!r}; of {action.role} must be one of {codecs}"
    if action.compressed:  # to what, only the data tell: nothing but the prediction depends on it
        fits = action.size_bytes >= action.samples
        return None if fits else f"size_bytes {action.size_bytes}; must be at least 1 per row, of {action.samples}"
    if action.role in PARAMETERS:
        prefix = chain.parameter_prefix_bytes
        plain, times = prefix[action.last] - prefix[action.first - 1], 1
    else:
        plain, times = chain.output_bytes(action.last) if action.last else chain.sample_bytes, action.samples
    size = encoding.encoded(plain, number_bytes) * times
    size += encoding.message_bytes * (size > 0)
    if action.size_bytes != size:
        return f"size_bytes {action.size_bytes}; {size} are what {encoding.codec} takes for these layers and rows"
    return None


def _miscounted(reached: Iterable[Rows], batch_size: int) -> str | None:
    """Which rows do not reach the loss, or more than once."""
    position = 0
    for start, end in sorted(part for rows in reached for part in rows):
        if start != position:
            again = start < position
            twice = rows_shown(((start, min(end, position)),)) if again else rows_shown(((position, start),))
            return f"rows {twice} reach the loss {'more than once' if again else 'never'}"
        position = end
    return f"rows {rows_shown(((position, batch_size),))} reach the loss never" if position < batch_size else None


@dataclass
class _Hands:
    """What one worker has in its hands, action by action: rows at a layer, and what it owes or is owed."""

    program: Program
    worker: str
    depth: int  # N
    held: tuple[int, Rows] | None = None  # activations: the layer after which, and their rows
    passed_on: bool = False  # held activations have gone to another worker, or into the loss
    saved: list[Action] = field(default_factory=list)  # forward actions that wait for their backward ones
    owed: list[Action] = field(default_factory=list)  # activations received, whose gradients are not yet sent back
    awaited: Action | None = None  # activations sent, whose gradients have not yet come
    gradient: tuple[int, Rows] | None = None  # of the activations after a layer
    computed: set[int] = field(default_factory=set)
    summed: set[int] = field(default_factory=set)  # layers whose gradients are complete or growing here
    sent: set[int] = field(default_factory=set)  # layers whose gradients were sent away
    updated: set[int] = field(default_factory=set)  # layers that the optimizer has updated here
    fresh: set[int] = field(default_factory=set)  # layers that have the new weights

    def follow(self) -> list[Action]:
        """Perform all actions; those that reach the loss. Raises InputError where something is not as it must be."""
        actions = self.program.actions[self.worker]
        if self.worker == self.program.data_holder:
            own = next((action for action in actions if action.op == Op.FORWARD and action.first == 1), None)
            self.held = None if own is None else (0, own.rows)
        for position, action in enumerate(actions):
            if fault := self._perform(action):
                raise InputError(f"{_place(self.worker, position, action)}: {fault}")
        if fault := self._left() or self._undone():
            raise InputError(f"program: {self.worker}, after its last action: {fault}")
        return [action for action in actions if action.op == Op.FORWARD and action.last == self.depth]

    def _perform(self, action: Action) -> str | None:
        by_what: Mapping[Op | Role, Callable[[Action], str | None]] = {
            Op.FORWARD: self._forward,
            Op.BACKWARD: self._backward,
            Op.UPDATE: self._update,
            Role.SAMPLES: self._samples,
            Role.ACTIVATIONS: self._activations,
            Role.ACTIVATION_GRADIENTS: self._activation_gradients,
            Role.GRADIENTS: self._gradients,
            Role.WEIGHTS: self._weights,
        }
        return by_what[action.role or action.op](action)

    def _forward(self, action: Action) -> str | None:
        if self.held != (action.first - 1, action.rows):
            return f"it holds {_at(self.held)}, this needs {_at((action.first - 1, action.rows))}"
        self.saved.append(action)
        self.passed_on = action.last == self.depth
        self.held = None if self.passed_on else (action.last, action.rows)
        return None

    def _backward(self, action: Action) -> str | None:
        if not self.saved:
            return "0 forward actions wait for their backward one; this needs 1"
        ahead = self.saved.pop()
        if (action.first, action.last, action.rows) != (ahead.first, ahead.last, ahead.rows):
            return f"the forward action to go back through is {ahead} (rows {rows_shown(ahead.rows)}); must be the same"
        needed = None if action.last == self.depth else (action.last, action.rows)
        if self.gradient != needed:
            return f"it has gradients of {_at(self.gradient)}; this needs those of {_at(needed)}"
        self.gradient = (action.first - 1, action.rows) if action.first > 1 else None
        self.computed |= _layers(action)
        self.summed |= _layers(action)
        return None

    def _update(self, action: Action) -> str | None:
        if gone := _layers(action) & self.sent:
            return f"its gradients of layers {_shown(gone)} were sent away before; must stay where the update is"
        if lacking := _layers(action) - self.summed:
            return f"it has no gradients of layers {_shown(lacking)}; an update needs them"
        self.updated |= _layers(action)
        self.fresh |= _layers(action)
        return self._left()

    def _samples(self, action: Action) -> str | None:
        holder = self.program.data_holder
        if action.op == Op.SEND:
            return None if self.worker == holder else f"{self.worker} sends samples; only the data holder {holder} has"
        if self.held is not None or self.passed_on:
            return f"it holds {_at(self.held)} already; samples are received once, and before anything else"
        self.held = 0, action.rows
        return None

    def _activations(self, action: Action) -> str | None:
        here = action.last, action.rows
        if action.op == Op.SEND:
            if self.held != here:
                return f"it holds {_at(self.held)}, this sends {_at(here)}; all that is held is sent"
            self.held, self.passed_on, self.awaited = None, True, action
            return None
        if self.passed_on:
            return "its own went on before; activations must be taken over before that"
        if self.held is not None and self.held[0] != action.last:
            return f"it holds {_at(self.held)}, this brings {_at(here)}; both must be after the same layer"
        self.held = action.last, joined(self.held[1] if self.held else (), action.rows)
        self.owed.append(action)
        return None

    def _activation_gradients(self, action: Action) -> str | None:
        if action.op == Op.RECEIVE:
            sent, self.awaited = self.awaited, None
            if sent is None or (sent.peer, sent.last, sent.rows) != (action.peer, action.last, action.rows):
                return f"it awaits gradients of {_of(sent, 'to')}; must come from there, for the same layer and rows"
            self.gradient = action.last, action.rows
            return None
        taken = self.owed.pop() if self.owed else None
        if taken is None or (taken.peer, taken.last, taken.rows) != (action.peer, action.last, action.rows):
            return f"next to go back are gradients of {_of(taken, 'from')}; must be the last taken over first"
        if self.gradient is None or self.gradient[0] != action.last:
            return f"it has gradients of {_at(self.gradient)}; this sends those of {_at((action.last, action.rows))}"
        rows = _without_last(self.gradient[1], action.samples)
        self.gradient = (action.last, rows) if rows else None
        return None

    def _gradients(self, action: Action) -> str | None:
        layers = _layers(action)
        if gone := layers & (self.sent | self.updated):
            return (
                f"gradients of layers {_shown(gone)} were sent or used before; must come before that, and be sent once"
            )
        if action.op == Op.RECEIVE:
            self.summed |= layers
            return None
        if lacking := layers - self.summed:
            return f"it has no gradients of layers {_shown(lacking)}; must have all that it sends"
        self.sent |= layers
        growing = next((saved for saved in self.saved if layers & _layers(saved)), None)
        return f"{growing} still waits for its backward action; must have it before" if growing else None

    def _weights(self, action: Action) -> str | None:
        if action.op == Op.SEND:
            if not _layers(action) <= self.fresh:
                fresh = _shown(self.fresh)
                sent = f"{action.first}..{action.last}"
                return f"it has new weights of layers {fresh}, this sends {sent}; must be among them"
            return None
        if again := self.fresh & _layers(action):
            return f"it has new weights of layers {_shown(again)} already; must get them once"
        self.fresh |= _layers(action)
        return None

    def _left(self) -> str | None:
        """What is still to be done before gradients are complete."""
        if self.held is not None:
            return f"it still holds {_at(self.held)}; must have computed and sent them"
        if self.saved:
            return f"{self.saved[-1]} still waits for its backward action; must have it before"
        if self.owed:
            return f"gradients of {_of(self.owed[-1], 'from')} are still owed; must go back before"
        if self.awaited:
            return f"gradients of {_of(self.awaited, 'to')} are still awaited; must come before"
        return f"gradients of {_at(self.gradient)} are left; must go back before" if self.gradient else None

    def _undone(self) -> str | None:
        """What is missing at the end of the iteration."""
        if left := self.summed - self.updated - self.sent:
            return f"gradients of layers {_shown(left)} are left; must be sent, or used by an update"
        if lacking := self.computed - self.fresh:
            return f"it computes layers {_shown(lacking)}, and has no new weights of them; must have them all"
        return None


def _layers(action: Action) -> set[int]:
    return set(range(action.first, action.last + 1))


def _shown(layers: set[int]) -> str:
    """Layers for an error's message, as ranges."""
    return rows_shown(joined(tuple((layer, layer + 1) for layer in sorted(layers))))


def _at(what: tuple[int, Rows] | None) -> str:
    if what is None:
        return "nothing"
    return f"rows {rows_shown(what[1])} {f'after layer {what[0]}' if what[0] else 'of raw samples'}"


def _of(message: Action | None, direction: str) -> str:
    return "nothing" if message is None else f"{_at((message.last, message.rows))} {direction} {message.peer}"


def _without_last(rows: Rows, samples: int) -> Rows:
    """Ranges of rows without the last so many."""
    kept = list(rows)
    while samples:
        start, end = kept.pop()
        if samples < end - start:
            kept.append((start, end - samples))
        samples -= min(samples, end - start)
    return tuple(kept)
