"""Cutting a module into a chain of segments: the layers of the paper, found from the module's own data flow.

The module is traced with torch.fx and cut wherever exactly one tensor, whose rows are the samples, leads from what
comes before to what comes after. Nothing about a model is written by hand. Shapes are found with fake tensors, which
have sizes and no data, so that nothing is computed and no buffer or random stream is disturbed.
"""

import io
import logging
import operator
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hiertrain.values import InputError
from hiertrain.workload.inplace import check_aliases, replace_in_place, spans_in_place

# Two batch sizes tell a dimension that counts samples from one that happens to have the same size.
PROBE_BATCHES = (2, 3)

# Where a fake tensor cannot be computed, PyTorch logs a page; the reason is in our error.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Segment:
    """One layer of the chain: a module from one tensor to one tensor, the samples in dimension 0."""

    name: str
    module: fx.GraphModule
    inexact: tuple[str, ...]  # classes and functions in it that depend on the batch or on a random stream


class _Evaluation(int):
    """The number 0 in the place of ``training``: false, and recognised where it is handed to a function."""


class _Tracer(fx.Tracer):
    """Traces into everything but torch's own modules and modules without children.

    The trace takes the paths of evaluation mode, without auxiliary heads, but ``training`` as the argument of a
    function (``F.dropout``) stays what it is when the segment runs.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = m.__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        return own or not any(m.children()) or super().is_leaf_module(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, _Evaluation):
            return self.graph.create_node("get_attr", "training")
        return super().create_arg(a)


def cut(module: nn.Module, sample_shape: tuple[int, ...], classes: int, repeats: int = 1) -> list[Segment]:
    """The module as segments, which share its parameters; the first one scales the raw samples by 1/255.

    The first one also gives the module the only channel of grey samples ``repeats`` times. Afterwards the module is in
    training mode and its in-place operations work out of place, since a cut makes a tensor a leaf of the autograd
    graph. Raises InputError with the reason when the module cannot be cut.
    """
    attributes = _attributes(module)
    graph = _trace(module)
    _check_stateless(module, attributes)
    scaled = _scale_samples(graph, repeats)
    changes = replace_in_place(graph, module)
    attributes = _attributes(module)
    module.eval()
    probes = [_propagate(graph, module, (samples, *sample_shape)) for samples in PROBE_BATCHES]
    module.train()
    _check_stateless(module, attributes)
    _check_output(graph, probes, classes)
    check_aliases(changes, graph, probes[0])
    graph.eliminate_dead_code(is_impure_node=_has_effect)
    for node, value in probes[0].items():
        node.meta["value"] = value
    groups = _split(graph, module, probes, scaled)
    names = _unique_names([_group_name([node for node in group if node not in scaled]) for group in groups])
    return [
        Segment(name, _segment_module(module, before[-1] if before else None, group), tuple(_inexact(module, group)))
        for name, before, group in zip(names, [[], *groups], groups, strict=False)
    ]


def _trace(module: nn.Module) -> fx.Graph:
    """The graph of the module's forward function in evaluation mode."""
    try:
        for part in module.modules():
            part.training = _Evaluation()  # type: ignore[assignment]
        with reasons_for("its forward function cannot be traced"):
            graph = _Tracer().trace(module)
    finally:
        module.train()
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if not inputs or any(not node.args for node in inputs[1:]):
        raise InputError(f"its forward function must take one tensor; it takes {[node.name for node in inputs]}")
    for node in inputs[1:]:  # further arguments keep their defaults
        _inline_default(node)
    return graph


def _attributes(module: nn.Module) -> dict[str, Any]:
    """All attributes, parameters and buffers of a module's parts, by their names, but for what tracing itself sets."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in module.named_modules()
        for name, value in (vars(part) | part._parameters | part._buffers).items()
        if name != "training" and not name.startswith("_tensor_constant")
    }


def _check_stateless(module: nn.Module, before: dict[str, Any]) -> None:
    """Raise InputError when running the forward function has set an attribute."""
    for name, value in _attributes(module).items():
        if name not in before or before[name] is not value:
            raise InputError(f"its forward function changes {name!r}; it must keep no state")


def _has_effect(node: fx.Node) -> bool:
    """Whether a node matters although nothing uses its value: a check of sizes does, a module's output does not."""
    return node.op in ("placeholder", "output") or (node.op == "call_function" and node.is_impure())


def _inline_default(node: fx.Node) -> None:
    """Put the default value of an optional argument where the argument is used."""
    default = node.args[0]
    for user in list(node.users):
        user.args = fx.map_arg(user.args, lambda arg: default if arg is node else arg)
        user.kwargs = fx.map_arg(user.kwargs, lambda arg: default if arg is node else arg)
    node.graph.erase_node(node)


def _scale_samples(graph: fx.Graph, repeats: int) -> list[fx.Node]:
    """Insert the conversion of raw samples (0..255) to float32 in 0..1; return its nodes, the input included."""
    samples = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(samples):
        floats = graph.call_method("to", (samples, torch.float32))
    with graph.inserting_after(floats):
        scaled = graph.call_function(operator.truediv, (floats, 255))
    samples.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not floats)
    if repeats == 1:
        return [samples, floats, scaled]
    with graph.inserting_after(scaled):
        coloured = graph.call_method("expand", (scaled, -1, repeats, -1, -1))
    scaled.replace_all_uses_with(coloured, delete_user_cb=lambda user: user is not coloured)
    return [samples, floats, scaled, coloured]


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the value of every node."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def _propagate(graph: fx.Graph, module: nn.Module, shape: tuple[int, ...]) -> dict[fx.Node, Any]:
    """The value of every node, tensors as fake ones, for raw samples of shape [n, C, H, W]."""
    recorder = _Recorder(module, graph)
    recorder.extra_traceback = False
    wanted = "x".join(str(size) for size in shape[1:])
    fails = reasons_for(f"it does not run on samples of shape {wanted}")
    with fails, FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        recorder.run(torch.zeros(shape, dtype=torch.uint8))
    return recorder.values


def _check_output(graph: fx.Graph, probes: list[dict[fx.Node, Any]], classes: int) -> None:
    output = next(node for node in graph.nodes if node.op == "output")
    for samples, values in zip(PROBE_BATCHES, probes, strict=True):
        result = values[output]
        if not isinstance(result, Tensor):
            raise InputError(f"its output must be one tensor; it is a {type(result).__name__}")
        if result.dtype != torch.float32 or tuple(result.shape) != (samples, classes):
            raise InputError(
                f"its output must be float32 of shape [n, {classes}]; for n = {samples} it is "
                f"{str(result.dtype).removeprefix('torch.')} of shape {list(result.shape)}"
            )


def _split(
    graph: fx.Graph, module: nn.Module, probes: list[dict[fx.Node, Any]], scaled: list[fx.Node]
) -> list[list[fx.Node]]:
    """The graph's nodes in groups that end at the cuts; attributes belong to their consumers and are left out."""
    nodes = [node for node in graph.nodes if node.op not in ("get_attr", "output")]
    position = {node: number for number, node in enumerate(nodes)}
    output = next(node for node in graph.nodes if node.op == "output")
    position[output] = len(nodes)
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    kept_whole = _spans_of_shared_state(graph, module, position) + spans_in_place(graph, position)
    groups: list[list[fx.Node]] = [[]]
    crossing: set[fx.Node] = set()
    for number, node in enumerate(nodes):
        groups[-1].append(node)
        crossing = {value for value in crossing | {node} if last_use[value] > number}
        divided = any(first <= number < last for first, last in kept_whole)
        if crossing == {node} and not divided and node not in scaled and _is_per_sample(node, probes):
            groups.append([])
    if not groups[-1]:  # the cut after the model's output
        groups.pop()
    return groups


def _is_per_sample(node: fx.Node, probes: list[dict[fx.Node, Any]]) -> bool:
    """Whether the node's value is a float32 tensor whose dimension 0, and no other, counts the samples."""
    values = [probe[node] for probe in probes]
    return all(isinstance(value, FakeTensor) and value.dtype == torch.float32 for value in values) and (
        [tuple(value.shape[:1]) for value in values] == [(samples,) for samples in PROBE_BATCHES]
        and values[0].shape[1:] == values[1].shape[1:]
    )


def _spans_of_shared_state(graph: fx.Graph, module: nn.Module, position: dict[fx.Node, int]) -> list[tuple[int, int]]:
    """First and last position at which each parameter or buffer is used that is used more than once."""
    uses: dict[int, list[int]] = {}
    for node in graph.nodes:
        places = [position[user] for user in node.users] if node.op == "get_attr" else [position.get(node, 0)]
        for tensor in _state_of(node, module):
            uses.setdefault(id(tensor), []).extend(places)
    spans = [(min(places), max(places)) for places in uses.values() if places]
    return [(first, last) for first, last in spans if first < last]


def _state_of(node: fx.Node, module: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers that a node uses itself."""
    if node.op == "call_module":
        part = module.get_submodule(str(node.target))
        yield from part.parameters()
        yield from part.buffers()
    elif node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(module)
        if isinstance(value, Tensor):
            yield value


def _segment_module(module: nn.Module, source: fx.Node | None, group: list[fx.Node]) -> fx.GraphModule:
    """The nodes of a group as a module; ``source`` is the node whose value it takes (None: the raw samples)."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if source is not None:
        copies[source] = graph.placeholder("x")

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies and node.op == "get_attr":
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in group:
        copies[node] = graph.node_copy(node, copy_of)
    graph.output(copies[group[-1]])
    return fx.GraphModule(module, graph, class_name="Segment")


def _group_name(group: list[fx.Node]) -> str:
    """The path that all modules, or without any all functions, share; where they share none, the first and last."""
    modules = [node for node in group if node.op == "call_module"]
    paths = [_path(node) for node in modules or [node for node in group if isinstance(node.meta["value"], Tensor)]]
    levels = zip(*(path.split(".") for path in paths), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return ".".join(shared) or "-".join(dict.fromkeys((paths[0], paths[-1])))


def _path(node: fx.Node) -> str:
    """The path of the module that a node calls; for a function, the path of the module around it and its name."""
    if node.op == "call_module":
        return str(node.target)
    around = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    name = node._pretty_print_target(node.target).rpartition(".")[2]
    return f"{around[-1]}.{name}" if around and around[-1] else name


def _unique_names(names: list[str]) -> list[str]:
    """The names, with _2, _3 and so on where one appears again; ``loss`` is taken."""
    taken = {"loss"}
    unique = []
    for name in names:
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        unique.append(candidate)
    return unique


def _inexact(module: nn.Module, group: list[fx.Node]) -> Iterator[str]:
    """What in a group depends, in training, on which samples share a batch or on a random stream; each once."""
    causes: dict[str, None] = {}
    for node in group:
        if node.op == "call_module":
            parts = module.get_submodule(str(node.target)).modules()
            causes.update({type(part).__name__: None for part in parts if _is_inexact_module(part)})
        elif node.op == "call_function" and _is_inexact_function(node):
            causes[node._pretty_print_target(node.target).rpartition(".")[2]] = None
    yield from causes


def _is_inexact_module(part: nn.Module) -> bool:
    match part:
        case _BatchNorm():
            return True
        case _DropoutNd():
            return part.p > 0
        case nn.MultiheadAttention() | nn.RNNBase():
            return part.dropout > 0
        case _:  # torchvision's, known by its name so that torchvision need not be imported
            return type(part).__name__ == "StochasticDepth" and cast(Any, part).p > 0


def _is_inexact_function(node: fx.Node) -> bool:
    """Whether a function that is told the mode, or is told to train, normalises the batch or drops values."""
    name = node._pretty_print_target(node.target)
    mode = node.kwargs.get("training", True)
    if mode is False:
        return False
    rates = [value for key, value in node.kwargs.items() if key == "p" or "dropout" in key]
    drops = any(isinstance(rate, float | int) and rate > 0 for rate in rates)
    return drops or "batch_norm" in name


@contextmanager
def reasons_for(what: str) -> Iterator[None]:
    """Whatever a foreign function raises is an InputError: ``what``, the kind of the error and its first line."""
    try:
        with redirect_stderr(io.StringIO()):  # where torch.fx writes its code when a segment fails
            yield
    except InputError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise InputError(f"{what}: {reason}") from error
