"""The weights of a model as one flat tensor, and as the bytes of a message."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from hiertrain.workload.chain_model import ChainModel


def flatten_weights(model: ChainModel, layers: range) -> Tensor:
    """Move the parameters of some layers, from 1, into one flat tensor, of which they become views, and return it.

    Float32, shape (parameters,), in chain order.
    """
    parameters = parameters_of(model, layers)
    if not parameters:
        return torch.empty(0)
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    for parameter, view in zip(parameters, split_like(weights, parameters), strict=True):
        parameter.data = view
    return weights


def split_like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat tensor in the shapes of the first of ``parameters``, as many as it has elements for."""
    views, offset = [], 0
    for parameter in parameters:
        if offset == flat.numel():
            break
        views.append(flat[offset : offset + parameter.numel()].view_as(parameter))
        offset += parameter.numel()
    return views


def parameters_of(model: ChainModel, layers: range) -> list[Parameter]:
    """The parameters of some layers, from 1."""
    return list(model.layers[layers.start - 1 : layers.stop - 1].parameters())


def give_up_weights(model: ChainModel, kept: range) -> None:
    """Free the parameters of all layers but these, from 1: a worker has its own only."""
    for number, layer in enumerate(model.layers, start=1):
        for parameter in layer.parameters() if number not in kept else ():
            parameter.data = torch.empty(0)


def weights_bytes(model: ChainModel) -> int:
    """The size of the parameters that there are."""
    return sum(parameter.nbytes for parameter in model.parameters())


def pack_weights(model: ChainModel, layers: range | None = None) -> bytes:
    """The weights, float32 in chain order, as raw bytes: of some layers, from 1, or of all.

    Running statistics of BatchNorm are left out: each worker has its own, of its own samples and layers only.
    """
    parameters = parameters_of(model, range(1, model.chain.depth + 1) if layers is None else layers)
    return b"".join(parameter.detach().cpu().numpy().tobytes() for parameter in parameters)


def unpack_weights(model: ChainModel, packed: bytes) -> None:
    """Set the weights of ``model`` from ``pack_weights``'s bytes. Raises RuntimeError on a wrong size."""
    torch.nn.utils.vector_to_parameters(torch.frombuffer(bytearray(packed), dtype=torch.float32), model.parameters())
