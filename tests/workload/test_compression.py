"""Compressed samples: nothing is lost, in any order, and what is no such message is said."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hiertrain.workload.compression import compress, decompress, joined
from hiertrain.workload.datasets import load_dataset

images = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5), fill=st.nothing() | st.just(0))


@given(images, st.data())
def test_any_samples_in_any_order_are_restored(array: np.ndarray, data: st.DataObject) -> None:
    samples = torch.from_numpy(array)
    rows = data.draw(st.lists(st.integers(0, len(samples) - 1), min_size=1, max_size=8))
    parts = compress(samples)
    message = joined(parts[row] for row in rows)
    assert len(message) == sum(len(parts[row]) for row in rows)
    assert torch.equal(decompress(message, (len(rows), *samples.shape[1:])), samples[rows])


def test_any_tool_reads_them() -> None:
    samples = load_dataset("digits").train_samples[:3]
    *_, last = parts = compress(samples)
    assert zlib.decompressobj(wbits=-15).decompress(b"".join(parts)) == samples.numpy().tobytes()
    assert zlib.decompressobj(wbits=-15).decompress(last) == samples[2].numpy().tobytes()


def test_their_mean_size() -> None:
    digits, random = load_dataset("digits"), load_dataset("synthetic")
    assert digits.compressed_sample_bytes() == pytest.approx(103, abs=3)  # of 1024; by which zlib, decides a little
    assert random.compressed_sample_bytes() >= 3072


@pytest.mark.parametrize("damage", ["short", "spoilt"])
def test_what_cannot_be_read_is_an_error(damage: str) -> None:
    (part,) = compress(torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8))
    broken = part[: len(part) // 2] if damage == "short" else b"\xff" * len(part)
    with pytest.raises(RuntimeError, match=r"compressed samples.*: (\d+ bytes were restored; must be 64|Error -3)"):
        decompress(joined([broken]), (1, 1, 8, 8))
