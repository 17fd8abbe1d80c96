"""The order in which training takes its samples.

It depends on seed and epoch alone, so that every plan trains on the same mini-batches.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from hiertrain.values import InputError


def sample_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: a permutation of 0..samples-1, int64 [samples], that depends on seed and epoch alone."""
    return _order(samples, seed, epoch).clone()


def batch_indices(samples: int, batch_size: int, seed: int, iteration: int) -> Tensor:
    """The samples of a mini-batch, int64 [batch_size]. Iterations count from 0 and run on through the epochs."""
    epoch, place = divmod(iteration, iterations_per_epoch(samples, batch_size))
    return _order(samples, seed, epoch)[place * batch_size : (place + 1) * batch_size].clone()


def iterations_per_epoch(samples: int, batch_size: int) -> int:
    """Whole mini-batches in an epoch; the samples that are left over come in another epoch's order."""
    if not 1 <= batch_size <= samples:
        raise InputError(f"batch size must be between 1 and the number of samples, {samples}; got {batch_size}")
    return samples // batch_size


@lru_cache(maxsize=2)
def _order(samples: int, seed: int, epoch: int) -> Tensor:
    for name, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise InputError(f"{name} must be at least 0; got {value}")
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(samples))
