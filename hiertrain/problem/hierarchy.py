"""Tiers: where in the hierarchy a worker stands, between the data and the computing power."""

from collections.abc import Mapping
from typing import Literal, Protocol, get_args

from hiertrain.values import InputError

Tier = Literal["device", "edge", "cloud"]
TIERS: tuple[Tier, ...] = get_args(Tier)  # from the data upwards


class Tiered(Protocol):
    """A worker's profile, or its settings in a testbed's file."""

    @property
    def tier(self) -> Tier | None: ...


def tier_of(name: str, worker: Tiered) -> Tier:
    """The worker's own tier, or else the one that its name begins with: "device-3" is a device. Raises InputError."""
    named = name.partition("-")[0]
    for tier in TIERS:
        if tier == (worker.tier or named):
            return tier
    raise InputError(
        f"worker {name!r} has no tier, and its name begins with none; give it the field tier: one of {', '.join(TIERS)}"
    )


def of_tier(workers: Mapping[str, Tiered], tier: Tier) -> tuple[str, ...]:
    """The workers of a tier, at least one, in their order. Raises InputError."""
    tiers = {name: tier_of(name, worker) for name, worker in workers.items()}
    found = tuple(name for name, own in tiers.items() if own == tier)
    if not found:
        others = ", ".join(f"{name} ({own})" for name, own in tiers.items())
        raise InputError(f"no worker of the tier {tier}; there are {others}")
    return found
