"""How one iteration of a plan is executed: what its messages hold."""

from typing import Literal

from hiertrain.values import Value

SCALE_BYTES = 8  # the least and the greatest value, float32, of a message of 8-bit activations


class Execution(Value):
    """How one iteration is executed. The abstract is silent on how raw samples are encoded, so that is a choice."""

    sample_encoding: Literal["uint8", "float32"] = "uint8"
    activation_encoding: Literal["float32", "uint8"] = "float32"  # of activations and their gradients; uint8 is JALAD's

    @classmethod
    def paper(cls) -> "Execution":
        """The paper's synchronous semantics; raw samples travel as uint8."""
        return cls()

    def encoded_bytes(self, sample_bytes: int) -> int:
        """Bytes of one raw sample on the wire, from its size as uint8."""
        return sample_bytes * (4 if self.sample_encoding == "float32" else 1)

    def activation_bytes(self, output_bytes: int, samples: int) -> int:
        """Bytes of a message of activations, or of their gradients, from their size per sample as float32."""
        if self.activation_encoding == "float32" or not output_bytes * samples:
            return samples * output_bytes
        return samples * output_bytes // 4 + SCALE_BYTES
