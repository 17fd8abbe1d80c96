"""How an iteration is executed: one frozen value with a field per option."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from hiertrain.values import Value


class Execution(Value):
    """The options of an execution: see ``program.passes``, which makes of each what it changes about an iteration.

    The abstract is silent on how raw samples are encoded, so that is a choice.
    """

    # zlib: each sample is compressed by itself, without loss, once when the data holder loads the data.
    sample_encoding: Literal["uint8", "float32", "zlib"] = "uint8"
    # Of activations and their gradients; uint8 is JALAD's.
    activation_encoding: Literal["float32", "uint8", "float16", "bfloat16"] = "float32"
    # Of weights and their gradients. Only messages are rounded: whoever updates has weights and optimizer in float32.
    parameter_encoding: Literal["float32", "float16", "bfloat16"] = "float32"
    # Raw samples travel while earlier iterations compute, and no barrier separates iterations.
    prefetch: bool = False
    # Gradients and weights travel in buckets of consecutive layers, each as soon as it is complete.
    buckets: bool = False
    # A layer's parameters are updated where it is computed, and travel only where several workers compute it.
    owners: bool = False

    @classmethod
    def paper(cls) -> "Execution":
        """The paper's synchronous semantics; raw samples travel as uint8."""
        return cls()

    @classmethod
    def overlapped(cls) -> "Execution":
        """Every option that overlaps communication with computation and loses nothing: exact, and faster."""
        return cls(prefetch=True, buckets=True, owners=True)


# Those that policies and plans are compared under, by the name that tables, figures and parameters have for them.
EXECUTIONS: Mapping[str, Execution] = MappingProxyType(
    {"paper": Execution.paper(), "overlapped": Execution.overlapped()}
)
