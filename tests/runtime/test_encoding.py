"""Messages that round: their size, what they keep exactly, and how wrong the rest is."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.program.compiler import compile_plan
from hiertrain.program.passes import ACTIVATIONS, lossy_layers
from hiertrain.runtime.encoding import CODECS, dequantize, quantize
from hiertrain.workload.architectures import build_model

JALAD = Execution(activation_encoding="uint8")
ENCODING = ACTIVATIONS["uint8"]
FINITE = np.finfo(np.float32)
# Besides ordinary values: the ends of the range of float32, its subnormals, and two neighbours.
extremes = [FINITE.max, FINITE.min, FINITE.smallest_subnormal, FINITE.smallest_normal, 1.0, 1.0 + FINITE.eps]
floats = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([float(x) for x in extremes])
shapes = hnp.array_shapes(max_dims=4, max_side=5)
arrays = hnp.arrays(np.float32, shapes, elements=floats)


def there_and_back(values: Tensor) -> Tensor:
    return dequantize(quantize(values), tuple(values.shape))


@given(arrays)
def test_no_value_is_wrong_by_more_than_half_a_step(array: np.ndarray) -> None:
    restored = there_and_back(torch.from_numpy(array)).numpy()
    assert (restored.dtype, restored.shape) == (np.float32, array.shape)
    assert np.isfinite(restored).all()
    wide, exact = restored.astype(np.longdouble), array.astype(np.longdouble)
    half_step = (exact.max() - exact.min()) / 510
    # Besides, the result is rounded to float32: by half the distance to the next one.
    rounding = np.abs(wide) * 2.0**-24 + 2.0**-150
    assert (np.abs(wide - exact) <= half_step * (1 + 1e-12) + rounding).all()
    assert (restored.min(), restored.max()) == (array.min(), array.max())


@given(arrays, arrays)
def test_a_larger_value_is_never_restored_as_a_smaller_one(array: np.ndarray, other: np.ndarray) -> None:
    values = np.sort(np.concatenate([array.ravel(), other.ravel()]))
    assert (np.diff(there_and_back(torch.from_numpy(values)).double().numpy()) >= 0).all()


@given(hnp.arrays(np.bool_, shapes), floats, floats)
def test_one_or_two_values_are_kept(which: np.ndarray, one: float, other: float) -> None:
    values = torch.where(torch.from_numpy(which), one, other)
    assert torch.equal(there_and_back(values), values)


def test_the_rule_by_hand() -> None:
    """From -1 to 50 in steps of 0.2."""
    message = quantize(torch.tensor([[-1.0, 50.0], [-0.89, -0.91], [0.0, 49.91]]))
    assert message.dtype == torch.uint8
    assert message[:8].numpy().view(np.float32).tolist() == [-1, 50]
    assert message[8:].tolist() == [0, 255, 1, 0, 5, 255]
    assert dequantize(message, (6,)).tolist() == pytest.approx([-1, 50, -0.8, -1, 0, 50], abs=1e-6)


@given(shapes)
def test_a_message_is_as_large_as_the_cost_model_says(shape: tuple[int, ...]) -> None:
    message = quantize(torch.randn(shape))
    assert len(message) == ENCODING.message_bytes + ENCODING.number_bytes * int(np.prod(shape))


def test_nothing_is_sent_for_nothing() -> None:
    nothing = torch.empty(0, 3, 4)
    assert not len(quantize(nothing))
    assert there_and_back(nothing).shape == nothing.shape


@given(arrays, st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.data())
def test_what_is_no_number_is_not_hidden(array: np.ndarray, value: float, data: st.DataObject) -> None:
    array.flat[data.draw(st.integers(0, array.size - 1))] = value
    assert not torch.isfinite(there_and_back(torch.from_numpy(array))).any()


def test_a_message_of_another_size_is_refused() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        dequantize(quantize(torch.randn(3, 4)), (3, 5))


def test_views_and_transposed_tensors_keep_their_order() -> None:
    values = torch.arange(256.0).reshape(16, 16)
    assert torch.equal(there_and_back(values.T), values.T)
    assert torch.equal(there_and_back(values[:, ::17]), values[:, ::17])


@given(arrays)
def test_float16_is_what_numpy_rounds_to_or_an_error(array: np.ndarray) -> None:
    """From 65520 on, halfway to 2^16, nothing finite is nearest; 2^-25 is halfway from 0 to the least."""
    greatest = np.abs(array).max()
    if greatest >= 65520:
        with pytest.raises(RuntimeError, match="float16 ends at 65504, bfloat16 has the range of float32"):
            CODECS["float16"].encode(torch.from_numpy(array))
        return
    message = CODECS["float16"].encode(torch.from_numpy(array))
    assert message.numpy().tobytes() == array.astype(np.float16).tobytes()
    restored = CODECS["float16"].decode(message, array.shape)
    assert restored.dtype == torch.float32
    assert np.array_equal(restored.numpy() == 0, np.abs(array) <= 2.0**-25)


@given(arrays)
def test_bfloat16_is_the_upper_half_of_float32_rounded_to_even(array: np.ndarray) -> None:
    bits = array.view(np.uint32).astype(np.uint64)
    upper = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    message = CODECS["bfloat16"].encode(torch.from_numpy(array))
    assert message.numpy().tobytes() == upper.tobytes()
    restored = CODECS["bfloat16"].decode(message, array.shape)
    assert restored.numpy().tobytes() == (upper.astype(np.uint32) << 16).tobytes()


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_half_precision_does_not_hide_what_is_no_number(half: str, value: float) -> None:
    restored = CODECS[half].decode(CODECS[half].encode(torch.tensor([1.0, value])), (2,))
    assert torch.isfinite(restored).tolist() == [True, False]


def test_layers_behind_rounded_messages_are_named() -> None:
    chain = build_model("lenet5").chain
    parts = {
        "device": Assignment(parent="edge", depth=3, samples=8),
        "edge": Assignment(parent="cloud", depth=13, samples=4),
        "phone": Assignment(parent="cloud", depth=6, samples=0),  # carries nothing, so it sends nothing
        "cloud": Assignment(parent=None, depth=13, samples=0),
    }
    plan = Plan(batch_size=12, data_holder="device", workers=parts)
    half, parameters = Execution(activation_encoding="float16"), Execution(parameter_encoding="bfloat16")
    for execution, lossy in (
        (JALAD, ("pool1: 8-bit activations",)),
        (half, ("pool1: half-precision activations",)),
        (parameters, ("pool1: half-precision parameters", "loss: half-precision parameters")),
        (Execution.paper(), ()),
    ):
        assert lossy_layers(compile_plan(plan, chain, execution), chain) == lossy
