"""Links, plans and runs as lines of the command line. Pure; times in seconds, accuracies as fractions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from hiertrain.problem.chain import Chain
from hiertrain.problem.network import Link
from hiertrain.problem.plan import Plan
from hiertrain.training.run import Times

if TYPE_CHECKING:  # a worker's machine has no solver
    from hiertrain.cost.limits import Explanation, Limit

SHOWN = 5e-4  # a share that is 0.1% when it is rounded


def plan_lines(plan: Plan, chain: Chain) -> list[str]:
    """A headline, then one line per worker: its layers by number and name, its samples and whom it sends to."""
    lines = [f"plan for {plan.batch_size} samples, held by {plan.data_holder}:"]
    for name, part in plan.workers.items():
        work = "does not compute"
        if plan.active(name):
            first, last = chain.layers[0].name, chain.layers[part.depth - 1].name
            layers = f"layer 1 ({first})" if part.depth == 1 else f"layers 1..{part.depth} ({first} .. {last})"
            role = "root" if part.parent is None else f"sends to {part.parent}"
            work = f"{layers}, {part.samples} samples, {role}"
        lines.append(f"  {name:10} {work}")
    return lines


def link_line(link: Link) -> str:
    """Bandwidth and latency of one direction, and by how much their measurements spread."""
    line = f"  {link.source:>8} -> {link.target:8} {link.bandwidth_mbps:9.2f} Mbit/s {link.latency_ms:8.2f} ms"
    if link.measurement is None:
        return line
    rate_mbps, latency_ms = link.measurement.bandwidth_spread_mbps, link.measurement.latency_spread_ms
    return f"{line}   spread {rate_mbps:8.2f} Mbit/s {latency_ms:6.2f} ms"


def limit_line(limit: "Limit") -> str:
    """The limit of any plan, and what binds it."""
    below = "" if limit.proven else ", or more: the time limit ended the search"
    binding = ", ".join(f"{binding.text} ({binding.share:.0%})" for binding in limit.binding) or "nothing"
    return f"limit of any plan: {limit.seconds * 1e3:.3f} ms per iteration{below}; what binds: {binding}"


def limit_lines(found: "Explanation") -> list[str]:
    """The limit, then one line for each machine or link that would lower it if it were faster."""
    before_s = found.limit.seconds
    lowering = [gain for gain in found.gains if gain.limit.seconds < before_s * (1 - SHOWN)]
    lines = [limit_line(found.limit), "what would lower it:" if lowering else "nothing would lower it by itself"]
    for gain in lowering:
        time_s, open_end = gain.limit.seconds, "" if gain.limit.proven else ", or less of a gain"
        lines.append(f"  {gain.text:40} {time_s * 1e3:9.3f} ms {time_s / before_s - 1:7.1%}{open_end}")
    return lines


def distance_line(plan_s: float, limit: "Limit") -> str:
    """The limit, and how many times as long a plan takes."""
    distance = f"; the plan takes {plan_s / limit.seconds:.2f} times as long" if limit.seconds else ""
    return f"{limit_line(limit)}{distance}"


def memory_line(seen_bytes: Mapping[str, int], predicted_bytes: Mapping[str, int]) -> str:
    """What training took of each worker's memory at most, and what was predicted."""
    known = {name: size for name, size in predicted_bytes.items() if name in seen_bytes}
    parts = (f"{name} {seen_bytes[name] / 1e6:.1f} ({size / 1e6:.1f})" for name, size in known.items())
    return f"memory for training in MB, measured (predicted for tensors alone): {', '.join(parts)}"


def times_line(kind: Literal["measured", "emulated"], times: Times, iteration_s: Sequence[float]) -> str:
    """A run's time per iteration, with the quartiles over its iterations, and what was predicted."""
    low_s, high_s = np.quantile(iteration_s, [0.25, 0.75])
    return (
        f"{kind}: {times.observed_s * 1e3:.2f} ms per iteration (quartiles {low_s * 1e3:.2f} and {high_s * 1e3:.2f} "
        f"over {len(iteration_s)}); predicted: {times.predicted_s * 1e3:.2f} ms"
    )


def verdict(
    computing: Sequence[str],
    kind: Literal["measured", "emulated"],
    times: Times,
    alone: Mapping[str, Times],
    accuracy: float,
    single_accuracy: float | None,
    proven: bool,
) -> str:
    """What it was worth that these workers computed, in one line.

    ``alone``: of single workers that do everything, in the same session; none where one worker computed, none may,
    or nothing was timed. ``proven``: no plan of these workers is faster.
    ``single_accuracy``: after the same training in one process; None where there was none.
    """
    learnt = f"accuracy {accuracy:.1%}"
    if single_accuracy is not None:
        learnt += f" against {single_accuracy:.1%} in one process"
    if len(computing) == 1:
        worth = "is best here, to divide the work would gain nothing" if proven else "trains alone"
        return f"verdict: one machine, {computing[0]}, {worth}; {learnt}"
    if not alone:
        return f"verdict: {len(computing)} workers, and no single machine's time to compare with; {learnt}"
    best = min(alone, key=lambda name: alone[name].observed_s)
    speedup, predicted = alone[best].observed_s / times.observed_s, alone[best].predicted_s / times.predicted_s
    return (
        f"verdict: {len(computing)} workers are {speedup:.2f}x as fast as the best single machine, {best} "
        f"({kind}; predicted: {predicted:.2f}x); {learnt}"
    )
