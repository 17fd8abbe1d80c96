"""Activations and their gradients as 8 bits per element: ``Execution(activation_encoding="uint8")``.

JALAD (Li et al., ICPADS 2018, arXiv 1812.10027) cuts a model for inference and compresses the activations at the cut
by normalising them. The details here are ours: always 8 bits, by an affine map between the least and the greatest value
of each message, without entropy coding; and, since the model is trained, the same for the gradients on the way back.
"""

import torch
from torch import Tensor

from hiertrain.problem.execution import SCALE_BYTES

STEPS = 255
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
