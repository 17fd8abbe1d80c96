"""How an iteration is executed: one frozen value with a field per option."""

from typing import Literal

from hiertrain.values import Value


class Execution(Value):
    """The options of an execution. Each is a pass over the template: see ``program.passes``.

    The abstract is silent on how raw samples are encoded, so that is a choice.
    """

    sample_encoding: Literal["uint8", "float32"] = "uint8"
    activation_encoding: Literal["float32", "uint8"] = "float32"  # of activations and their gradients; uint8 is JALAD's
    # Raw samples travel while earlier iterations compute, and no barrier separates iterations.
    prefetch: bool = False

    @classmethod
    def paper(cls) -> "Execution":
        """The paper's synchronous semantics; raw samples travel as uint8."""
        return cls()
