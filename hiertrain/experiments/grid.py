"""The grid of the reproduction: every policy at every setting of three hosts.

The hosts are emulated from a recorded profile of the model, so they are the same on every computer that is fast enough
to keep their pace, and predictions need no measurement at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tqdm.auto import tqdm

from hiertrain import files
from hiertrain.cost.memory import memory_bytes
from hiertrain.paths import DATA
from hiertrain.planning.baselines import single_worker_plan
from hiertrain.planning.policies import POLICIES, Policy, find_policies
from hiertrain.problem.execution import EXECUTIONS
from hiertrain.problem.hierarchy import TIERS, Tier, of_tier, tier_of
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile
from hiertrain.testbeds.nominal import nominal_network
from hiertrain.testbeds.settings import AnySettings, LocalSettings, NetnsSettings
from hiertrain.values import BatchSize, InputError, Name, RateMbps, Share, Slowdown, Value

Emulated = LocalSettings | NetnsSettings


class Setting(Value):
    """One point of the grid: what is trained and how, and the hosts by their tiers.

    Slowdowns are over the recorded profile.
    """

    model: Name
    batch_size: BatchSize
    execution: Literal["paper", "overlapped"] = "paper"  # of ``EXECUTIONS``
    sample_encoding: Literal["uint8", "float32"] = "uint8"
    device_edge_mbps: RateMbps  # both ways
    cloud_mbps: RateMbps  # every link to and from the cloud
    device_slowdown: Slowdown
    edge_slowdown: Slowdown
    cloud_slowdown: Slowdown
    samples_stay: bool = False  # raw samples are private: they must not leave the device
    device_memory: Share = 1.0  # of a device, over what it needs to train alone

    def slowdown(self, tier: Tier) -> float:
        """Of each worker of a tier."""
        return {"device": self.device_slowdown, "edge": self.edge_slowdown, "cloud": self.cloud_slowdown}[tier]

    def mbps(self, *tiers: Tier) -> float:
        """Rate between workers of two tiers."""
        return self.cloud_mbps if "cloud" in tiers else self.device_edge_mbps


@dataclass(frozen=True)
class Case:
    """A setting, and the plan of every policy there."""

    setting: Setting
    policies: Mapping[str, Policy]


def check_emulated(settings: AnySettings) -> Emulated:
    """The settings, if they are of hosts that can be given the speeds and rates of a ``Setting``; else InputError."""
    if not isinstance(settings, LocalSettings | NetnsSettings) or set(_tiers(settings).values()) != set(TIERS):
        raise InputError(
            f"testbed of kind {settings.kind!r} with {', '.join(settings.workers)}: a grid of settings needs the "
            "workers device, edge and cloud of a local testbed or of network namespaces"
        )
    pairs = len(settings.workers) * (len(settings.workers) - 1)
    if any(worker.slowdown == 1 for worker in settings.workers.values()) or len(settings.links) < pairs:
        raise InputError("testbed: a grid of settings needs a slowdown of every worker and a rate of every link")
    middle, tiers = setting_of(settings, "any", 1), _tiers(settings)
    for name, worker in settings.workers.items():
        if worker.slowdown != (slowdown := middle.slowdown(tiers[name])):
            raise InputError(
                f"testbed: slowdown {worker.slowdown:g} of {name}, {slowdown:g} of another {tiers[name]}; a grid of "
                "settings has one slowdown for each tier"
            )
    for link in settings.links:
        if link.bandwidth_mbps != (mbps := middle.mbps(tiers[link.source], tiers[link.target])):
            raise InputError(
                f"testbed: {link.bandwidth_mbps:g} Mbit/s from {link.source} to {link.target}, {mbps:g} on another "
                "link; a grid of settings has one rate between device and edge, and one for all links of the cloud"
            )
    return settings


def _tiers(settings: AnySettings) -> Mapping[str, Tier]:
    return {name: tier_of(name, worker) for name, worker in settings.workers.items()}


def setting_of(settings: Emulated, model: str, batch_size: int) -> Setting:
    """The testbed as its file describes it, by the first worker of each tier."""
    device, edge, cloud = (of_tier(settings.workers, tier)[0] for tier in TIERS)
    rates = {(link.source, link.target): link.bandwidth_mbps for link in settings.links}
    return Setting(
        model=model,
        batch_size=batch_size,
        device_edge_mbps=rates[device, edge],
        cloud_mbps=rates[device, cloud],
        device_slowdown=settings.workers[device].slowdown,
        edge_slowdown=settings.workers[edge].slowdown,
        cloud_slowdown=settings.workers[cloud].slowdown,
    )


def varied(setting: Setting, axis: str, values: Sequence[float | str]) -> list[Setting]:
    """The setting with each of the values in the field ``axis``. Raises InputError for an unknown field or value."""
    numbers = (int(value) if isinstance(value, float) and value.is_integer() else value for value in values)
    return [files.parse(Setting, {**dict(setting), axis: value}, f"sweep of {axis}") for value in numbers]


def settings_at(settings: Emulated, setting: Setting) -> Emulated:
    """The testbed with the speeds and rates of a setting. Raises InputError where it cannot have them."""
    tiers = _tiers(settings)
    workers = {
        name: {**dict(worker), "slowdown": setting.slowdown(tiers[name])} for name, worker in settings.workers.items()
    }
    links = [
        {**dict(link), "bandwidth_mbps": setting.mbps(tiers[link.source], tiers[link.target])}
        for link in settings.links
    ]
    return files.parse(type(settings), {**dict(settings), "workers": workers, "links": links}, "testbed of the grid")


def recorded_profile(model: str, slowdowns: Mapping[str, float]) -> Profile:
    """What data/profiles/<model>.json says of its first worker, as if each worker were so many times as slow.

    Raises InputError that says how to record one.
    """
    path = DATA / "profiles" / f"{model}.json"
    if not path.is_file():
        raise InputError(
            f"{path}: there is no recorded profile of {model!r}; git restores those that come with the workbench, and "
            "`hiertrain profile --model MODEL --output FILE` records one"
        )
    recorded = files.load(Profile, path)
    machine = next(iter(recorded.workers.values()))
    workers = {
        name: machine.scaled(slowdown / machine.slowdown).model_copy(update={"slowdown": slowdown})  # exactly
        for name, slowdown in slowdowns.items()
    }
    return recorded.model_copy(update={"workers": workers})


def problem_at(settings: Emulated, setting: Setting) -> Problem:
    """What a scheduler is asked at a setting: recorded layer times at its speeds, links as they are meant to be."""
    slowdowns = {name: setting.slowdown(tier) for name, tier in _tiers(settings).items()}
    profile = recorded_profile(setting.model, slowdowns)
    tiered = {
        name: own.model_copy(update={"tier": settings.workers[name].tier}) for name, own in profile.workers.items()
    }
    problem = Problem(
        profile.model_copy(update={"workers": tiered}),
        nominal_network(settings_at(settings, setting)),
        setting.batch_size,
        settings.data_holder,
        EXECUTIONS[setting.execution].model_copy(update={"sample_encoding": setting.sample_encoding}),
        samples_stay=setting.samples_stay,
    )
    if setting.device_memory == 1:
        return problem
    limits = {}
    for name in of_tier(tiered, "device"):
        alone = single_worker_plan(profile.chain, tuple(tiered), name, setting.batch_size, settings.data_holder)
        limits[name] = int(setting.device_memory * memory_bytes(problem, alone, name))
    return replace(problem, memory_limit_bytes=limits)


def find_cases(settings: Emulated, points: Sequence[Setting], names: Sequence[str] = POLICIES) -> list[Case]:
    """The plans of the named policies at every different point. Raises InputError."""
    different = list(dict.fromkeys(points))
    return [
        Case(point, find_policies(problem_at(settings, point), names))
        for point in tqdm(different, desc="plans", leave=False)
    ]
