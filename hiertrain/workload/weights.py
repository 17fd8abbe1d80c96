"""The weights of a model as one flat tensor, and as the bytes of a message."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hiertrain.workload.chain_model import ChainModel


def flatten_weights(model: ChainModel, depth: int) -> Tensor:
    """Move the parameters of layers 1..depth into one flat tensor, of which they become views, and return it.

    Float32, shape (parameters,), in chain order: the first ``parameter_prefix_bytes[m] / 4`` elements are those of
    layers 1..m.
    """
    parameters = list(model.layers[:depth].parameters())
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


def pack_weights(model: ChainModel) -> bytes:
    """The weights, float32 in chain order, as raw bytes.

    Running statistics of BatchNorm are left out: each worker has its own, of its own samples and layers only.
    """
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).cpu().numpy().tobytes()


def unpack_weights(model: ChainModel, packed: bytes) -> None:
    """Set the weights of ``model`` from ``pack_weights``'s bytes. Raises RuntimeError on a wrong size."""
    torch.nn.utils.vector_to_parameters(torch.frombuffer(bytearray(packed), dtype=torch.float32), model.parameters())
