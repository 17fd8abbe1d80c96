"""A model as a chain of layers, as far as the plan, the cost model and the solver need to know it.

Layers are numbered 1..N; the loss is layer N (its output is a scalar, so it sends nothing). Layer 0's output is
the raw sample. All sizes are in bytes and, except for parameters, per sample (paper, profiling stage).
"""

from collections import Counter
from functools import cached_property
from itertools import accumulate
from typing import Literal

from pydantic import Field, model_validator

from hiertrain.problem.execution import Execution
from hiertrain.values import MOST_LAYERS, BatchSize, Bytes, InputError, LayerName, Name, PositiveBytes, Value


class Layer(Value):
    """One step of the chain: the unit at which a model may be cut."""

    name: LayerName
    output_bytes: Bytes  # per sample, at the chain's dtype; 0 for the loss
    parameter_bytes: Bytes
    activation_bytes: Bytes | None = None  # kept for backward, per sample; None: not recorded
    least_samples: BatchSize = 1  # that it can be trained on: BatchNorm refuses a single value per channel


def check_layer_names(layers: tuple[Layer, ...]) -> None:
    """Raise ValueError when two layers share a name."""
    (name, times), *_ = Counter(layer.name for layer in layers).most_common(1)
    if times > 1:
        raise ValueError(f"layer name {name!r} appears {times} times; names must be unique")


class Chain(Value):
    """The layers of one model for samples of one shape."""

    model: Name
    sample_bytes: PositiveBytes  # one raw sample as uint8
    # The same compressed by zlib, mean over a data set; None: not known.
    compressed_sample_bytes: PositiveBytes | None = Field(default=None, exclude_if=lambda size: size is None)
    dtype: Literal["float32"] = "float32"
    layers: tuple[Layer, ...] = Field(min_length=1, max_length=MOST_LAYERS)
    # Layers that make hybrid training differ from single-machine SGD, each with its cause ("bn1: BatchNorm2d").
    inexact_layers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _unique_names(self) -> "Chain":
        check_layer_names(self.layers)
        return self

    @property
    def depth(self) -> int:
        """N, the number of layers, the loss included."""
        return len(self.layers)

    @property
    def exact(self) -> bool:
        """Whether hybrid training equals single-machine SGD up to floating-point summation order."""
        return not self.inexact_layers

    @cached_property
    def parameter_prefix_bytes(self) -> tuple[int, ...]:
        """Entry m: bytes of the parameters of layers 1..m; shape (N + 1,)."""
        return tuple(accumulate((layer.parameter_bytes for layer in self.layers), initial=0))

    def sent_sample_bytes(self, execution: Execution) -> int:
        """Bytes of one raw sample, compressed where it is sent so. Raises InputError where these are not known."""
        if execution.sample_encoding != "zlib":
            return self.sample_bytes
        if self.compressed_sample_bytes is None:
            raise InputError(
                f"profile of {self.model}: compressed_sample_bytes is not there; sample_encoding=zlib needs it, and "
                "hiertrain profile --dataset NAME records it"
            )
        return self.compressed_sample_bytes

    def output_bytes(self, depth: int) -> int:
        """Bytes of one sample's activations after layer ``depth`` (1..N)."""
        return self.layers[depth - 1].output_bytes
