"""Operations that change a tensor in place, in a traced graph: made out of place, since a cut may make it a leaf.

Autograd refuses to change a leaf that requires a gradient. What is computed later from the changed tensor is computed
from the operation's result instead. An operation that has no counterpart out of place (``normal_``) stays as it is, and
no cut may part it from the tensor that it changes.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from hiertrain.values import InputError

OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}
# Where torch has its functions; those of ``torch.nn.functional`` that end in an underscore are some of these.
PLACES = (torch, torch._C._nn)  # type: ignore[reportAttributeAccessIssue]


def replace_in_place(graph: fx.Graph, module: nn.Module) -> list[tuple[fx.Node, fx.Node]]:
    """Make every in-place operation out of place that can be; return (changed value, operation) for each of them."""
    position = {node: number for number, node in enumerate(graph.nodes)}
    changes = []
    for node in [node for node in graph.nodes if _is_in_place(node, module)]:
        changed = node.args[0] if node.args else node.kwargs["input"]
        node.target = _out_of_place_target(node)
        if "inplace" in node.kwargs:
            node.update_kwarg("inplace", False)
        if isinstance(changed, fx.Node):
            changed.replace_all_uses_with(
                node, delete_user_cb=lambda user, node=node: position[user] > position[node], propagate_meta=False
            )
            changes.append((changed, node))
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    return changes


def check_aliases(changes: list[tuple[fx.Node, fx.Node]], graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
    """Refuse in-place changes that are seen through a view: out of place they would be lost."""
    position = {node: number for number, node in enumerate(graph.nodes)}
    for changed, operation in changes:
        for node, value in values.items():
            if node in (changed, operation) or position[node] > position[operation]:
                continue
            seen_later = any(position[user] > position[operation] for user in node.users)
            if seen_later and _shares_storage(value, values[changed]):
                raise InputError(
                    f"{operation.name!r} changes {changed.name!r} in place, and {node.name!r} is a view of it"
                )


def spans_in_place(graph: fx.Graph, position: dict[fx.Node, int]) -> list[tuple[int, int]]:
    """First and last position of what must not be parted: a tensor, and an operation that still changes it in place."""
    changes = [(node.args[0], node) for node in graph.nodes if node.args and _named_in_place(node)]
    return [(position[changed], position[node]) for changed, node in changes if isinstance(changed, fx.Node)]


def _is_in_place(node: fx.Node, module: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    return node.op in ("call_function", "call_method") and (
        bool(node.kwargs.get("inplace")) or node.target in OUT_OF_PLACE or _named_in_place(node) is not None
    )


def _named_in_place(node: fx.Node) -> str | None:
    """The name of the in-place operation that the node calls, by torch's rule: ``relu_`` changes its input."""
    name = node._pretty_print_target(node.target).rpartition(".")[2]
    if node.op == "call_method":
        known = hasattr(Tensor, name)
    else:
        known = node.op == "call_function" and any(getattr(place, name, None) is node.target for place in PLACES)
    changes = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"  # which changes no value
    return name if known and changes else None


def _out_of_place_target(node: fx.Node) -> Any:
    if node.target in OUT_OF_PLACE:
        return OUT_OF_PLACE[node.target]  # type: ignore[index]
    name = _named_in_place(node)
    if name is None:
        return node.target
    if node.op == "call_method":
        return name[:-1] if callable(getattr(Tensor, name[:-1], None)) else name
    place = next(place for place in PLACES if getattr(place, name, None) is node.target)
    return getattr(place, name[:-1], node.target)


def _shares_storage(value: Any, other: Any) -> bool:
    both = isinstance(value, Tensor) and isinstance(other, Tensor)
    return both and value.untyped_storage()._cdata == other.untyped_storage()._cdata
