"""Numbers that should make one stop: each kind has a limit, says why it matters and what to do.

They are values, shown on the screen, kept in records and listed in the report; they are no warnings of Python's. Each
function gives at most one alarm per kind, of the worst case, with how many there are.
"""

import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from hiertrain.problem.network import Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.profile import Profile
from hiertrain.profiling.estimates import LIMIT as RESIDUAL
from hiertrain.profiling.estimates import missed
from hiertrain.testbeds.settings import AnySettings
from hiertrain.values import Ratio, Value

LATE = 0.01  # share of the time: paced hosts are then slower by that, while predictions are right within a few percent
MISS = 1.25  # times: far beyond the 10% within which predictions are to be, so that something is not as predicted
REPEAT = 1.2  # times: two runs of one plan usually differ by less than 5%
SPREAD = 1.0  # times the latency: the latency says nothing then
LEAST_SPREAD_MS = 0.5  # a spread below costs an iteration of a few messages next to nothing
RATE_SPREAD = 0.25  # of the bandwidth: transfers then take a quarter more or less than predicted


class Alarm(Value):
    """A number beyond its limit."""

    what: str  # what it is, with its value, its place and its unit
    value: Ratio
    limit: Ratio
    advice: str  # what to do

    def __str__(self) -> str:
        return f"warning: {self.what}; {self.advice}"


def show(alarms: Iterable[Alarm]) -> None:
    """Write each once to the standard error, which a notebook shows as a block of its own."""
    for text in dict.fromkeys(map(str, alarms)):
        sys.stderr.write(f"{text}\n")


def loaded(contents: Iterable[object]) -> list[Alarm]:
    """Alarms as records hold them."""
    return [Alarm.model_validate(content) for content in contents]


def lateness(shares: Mapping[str, float]) -> list[Alarm]:
    """Paced actions that came too late, as a share of the time, by the name of the run."""
    return _worst(
        shares,
        LATE,
        lambda name: f"paced actions came too late for {shares[name]:.1%} of the time",
        "these times are not those of the hosts: stop what else runs here, or use larger slowdowns",
    )


def misses(times_s: Mapping[str, tuple[float, float]]) -> list[Alarm]:
    """Predictions far from what was observed; seconds, predicted and observed, by the name of the plan."""

    def what(name: str) -> str:
        predicted_ms, observed_ms = (1e3 * value for value in times_s[name])
        return (
            f"a prediction misses by a factor of {factors[name]:.2f}: {predicted_ms:.1f} ms predicted, "
            f"{observed_ms:.1f} ms observed"
        )

    # A profile written by hand may cost nothing: that predicts nothing.
    factors = {name: max(a / b, b / a) for name, (a, b) in times_s.items() if a and b}
    advice = "give every worker cores of its own, stop what else runs, then measure layers and links again"
    return _worst(factors, MISS, what, advice)


def of_run(late_share: float, times_s: Mapping[str, tuple[float, float]], runs_s: Sequence[float]) -> list[Alarm]:
    """Of a run by one plan: how late it was, all predictions of its session, and the seconds of the plan's runs."""
    return [*lateness({"the plan": late_share}), *misses(times_s), *repetitions({"the plan": runs_s})]


def repetitions(times_s: Mapping[str, Sequence[float]]) -> list[Alarm]:
    """Runs of the same plan that took differently long; seconds per iteration of each run, by the name of the plan."""

    def what(name: str) -> str:
        fast_ms, slow_ms = 1e3 * min(times_s[name]), 1e3 * max(times_s[name])
        return (
            f"runs of the same plan differ by {factors[name] - 1:.0%}: {fast_ms:.1f} and {slow_ms:.1f} ms per iteration"
        )

    factors = {name: max(own) / min(own) for name, own in times_s.items() if len(own) > 1}
    advice = "smaller differences than this mean nothing here: stop what else runs, and repeat"
    return _worst(factors, REPEAT, what, advice)


def spreads(network: Network) -> list[Alarm]:
    """Links whose measured latency or bandwidth is known badly."""
    latency, rate = {}, {}
    for link in network.links:
        if measured := link.measurement:
            name, spread_ms = f"{link.source} to {link.target}", measured.latency_spread_ms
            # What is tiny may spread: it costs an iteration next to nothing.
            latency[name] = spread_ms / max(link.latency_ms, 1e-9) if spread_ms > LEAST_SPREAD_MS else 0.0
            rate[name] = measured.bandwidth_spread_mbps / link.bandwidth_mbps
    advice = "stop what else uses the link or the machines, and measure it again"
    return [
        *_worst(
            latency, SPREAD, lambda name: f"a link's latency spreads by {latency[name]:.2g} times its value", advice
        ),
        *_worst(
            rate, RATE_SPREAD, lambda name: f"a link's bandwidth spreads by {rate[name]:.2g} times its value", advice
        ),
    ]


def crowding(settings: AnySettings, workers: Collection[str], cores: int | None = None) -> list[Alarm]:
    """More computing at once than this machine has ``cores`` for, known before anything runs.

    A paced worker computes for one part in ``slowdown`` of the time. Machines that SSH reaches have cores of their own.
    """
    if not settings.one_machine:
        return []
    available = cores or os.cpu_count() or 1
    needed = sum(settings.workers[name].threads / settings.workers[name].slowdown for name in workers)
    if len(workers) < 2 or needed <= available:
        return []
    return [
        Alarm(
            what=f"{len(workers)} workers can use {needed:.3g} cores at once, and this machine has {available}",
            value=needed,
            limit=available,
            advice="they will slow each other down, which no prediction knows: use slowdowns or fewer workers",
        )
    ]


def misfits(profile: Profile, plans: Iterable[Plan]) -> list[Alarm]:
    """Costs of layers that are far from their measured times at the numbers of samples that the plans use."""
    found = dict.fromkeys(miss for plan in plans for miss in missed(profile, plan) if miss.measured_s)
    if not found:
        return []
    worst = max(found, key=lambda residual: abs(residual.cost_s - residual.measured_s))
    return [
        Alarm(
            what=(
                f"the profile's time of {worst.layer} ({worst.step}, {worst.samples} samples, {worst.worker}) is "
                f"{worst.cost_s * 1e3:.2f} ms, measured were {worst.measured_s * 1e3:.2f} ms ({len(found)} times "
                f"that a plan uses are over {RESIDUAL:.0%} off)"
            ),
            value=abs(worst.relative),
            limit=RESIDUAL,
            advice="predictions of unpaced workers are off by as much: profile again on a quiet machine",
        )
    ]


def _worst(values: Mapping[str, float], limit: float, what: Callable[[str], str], advice: str) -> list[Alarm]:
    """The largest value beyond the limit, if there is one, with its name and how many there are. NaN is none."""
    above = [name for name, value in values.items() if value > limit]
    if not above:
        return []
    worst = max(above, key=values.__getitem__)
    count = f"; {len(above)} of {len(values)} are over {limit:g}" if len(values) > 1 else ""
    return [Alarm(what=f"{what(worst)} ({worst}{count})", value=values[worst], limit=limit, advice=advice)]
