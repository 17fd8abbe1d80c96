"""How numbers are written into messages: one codec for each encoding of ``program.passes``.

Float16 and bfloat16 round each number to the nearest that they have; gradients are not scaled before that.
Scaled-uint8 is for activations and their gradients (``Execution(activation_encoding="uint8")``).

JALAD (Li et al., ICPADS 2018, arXiv 1812.10027) cuts a model for inference and compresses the activations at the cut
by normalising them. The details here are ours: always 8 bits, by an affine map between the least and the greatest value
of each message, without entropy coding; and, since the model is trained, the same for the gradients on the way back.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hiertrain.program.actions import COMPRESSED, Action
from hiertrain.workload.compression import decompress

STEPS = 255
SCALE_BYTES = 8  # the least and the greatest value of a message, float32
# Float64 throughout: the range of float32 values may exceed their greatest value, or have no inverse among them.
SHARES = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS


def quantize(values: Tensor) -> Tensor:
    """A float32 tensor of any shape as a message: uint8, shape (8 + elements,), or (0,) where there are none.

    The message begins with the least and the greatest value, float32. Then each element x follows as
    round(255 (x - least) / (greatest - least)): restored, it is wrong by at most half a step, (greatest - least) / 510,
    and the rounding of the result to float32. Equal elements, and the least and the greatest, are restored exactly.
    """
    if not values.numel():
        return torch.empty(0, dtype=torch.uint8)
    bounds = torch.stack(values.aminmax())
    least, greatest = bounds.tolist()
    levels = values.flatten().double().sub_(least).mul_(STEPS / ((greatest - least) or 1.0)).round_()
    return torch.cat([bounds.view(torch.uint8), levels.to(torch.uint8)])


def dequantize(message: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The float32 tensor of this shape that ``quantize`` made the message of. Raises RuntimeError on a wrong size.

    Values that are not finite make the whole tensor so: a diverged training is still noticed.
    """
    if not message.numel():
        return torch.empty(shape)
    least, greatest = message[:SCALE_BYTES].view(torch.float32).double()
    restored = torch.lerp(least, greatest, SHARES).float()  # exact at both ends
    return restored.index_select(0, message[SCALE_BYTES:].int()).reshape(shape)


class Codec(NamedTuple):
    """From a tensor to the bytes of a message, uint8 of shape (size,), and back to a tensor of a shape."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, tuple[int, ...]], Tensor]


def _plain(dtype: torch.dtype) -> Codec:
    """Each number as it is in memory; little-endian machines only, like all that PyTorch runs on."""
    return Codec(
        lambda values: values.to(dtype).contiguous().flatten().view(torch.uint8),
        lambda message, shape: _computable(message.view(dtype).reshape(shape)),
    )


def _float16(values: Tensor) -> Tensor:
    """Raises RuntimeError where finite numbers would become infinite; those below 2^-25 become 0."""
    rounded = values.to(torch.float16)
    if rounded.isinf().any() and values.isfinite().all():
        raise RuntimeError(
            f"its greatest number is {values.abs().max().item():.3g}; "
            "float16 ends at 65504, bfloat16 has the range of float32"
        )
    return FLOAT16.encode(rounded)


def _computable(values: Tensor) -> Tensor:
    """As layers take them: float32, or the uint8 of raw samples."""
    return values.float() if values.is_floating_point() else values


FLOAT16 = _plain(torch.float16)
CODECS = {
    "uint8": _plain(torch.uint8),
    "float32": _plain(torch.float32),
    "float16": FLOAT16._replace(encode=_float16),
    "bfloat16": _plain(torch.bfloat16),
    "scaled-uint8": Codec(quantize, dequantize),
    COMPRESSED: _plain(torch.uint8)._replace(decode=decompress),  # which the data holder has compressed at the start
}


def codec_of(action: Action) -> Codec:
    """The codec of a message."""
    assert action.encoding is not None
    return CODECS[action.encoding]
