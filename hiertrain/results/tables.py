"""Results as DataFrames, one row per thing, units in the column names: what figures draw and notebooks show."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hiertrain import files
from hiertrain.paths import RESULTS
from hiertrain.problem.chain import Chain
from hiertrain.problem.network import Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.profile import Profile
from hiertrain.profiling.estimates import Residual, residuals
from hiertrain.results import alarms
from hiertrain.results.alarms import Alarm
from hiertrain.results.records import run_folder
from hiertrain.values import InputError


def save_table(df: pd.DataFrame, name: str, run: str, root: Path = RESULTS) -> None:
    """Write results/<run>/tables/<name>.csv."""
    files.write_text(run_folder(run, root) / "tables" / f"{name}.csv", df.to_csv(index=False, lineterminator="\n"))


def load_table(path: Path) -> pd.DataFrame:
    """Read a CSV file. Raises InputError that names it where there is none, or no table in it."""
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise InputError(f"{path}: No such file") from None
    except ValueError as error:  # pandas' own errors are ValueErrors, and so is text that is not UTF-8
        raise InputError(f"{path}: not a table: {error}") from None


def markdown_table(df: pd.DataFrame) -> str:
    """The same in Markdown: numbers of three digits, nothing where there is none."""
    lines = [df.columns, ["---"] * len(df.columns), *(row[1:] for row in df.itertuples())]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3g}"
    return str(value).replace("|", "\\|")


def chain_table(chain: Chain) -> pd.DataFrame:
    """One row per layer: sizes in KiB, per sample but for the parameters."""
    rows = [
        {
            "model": chain.model,
            "layer": layer.name,
            "output_kib_per_sample": layer.output_bytes / 1024,
            "parameter_kib": layer.parameter_bytes / 1024,
            "activation_kib_per_sample": np.nan if layer.activation_bytes is None else layer.activation_bytes / 1024,
            "sample_kib": chain.sample_bytes / 1024,
        }
        for layer in chain.layers
    ]
    return pd.DataFrame(rows)


def model_table(chains: Sequence[Chain]) -> pd.DataFrame:
    """One row per model: size, the best place to cut, and whether hybrid training is exact."""
    rows = []
    for chain in chains:
        cuts = [layer for layer in chain.layers[:-1] if layer.output_bytes]
        smallest = min(cuts, key=lambda layer: layer.output_bytes)
        rows.append(
            {
                "model": chain.model,
                "layers": chain.depth,
                "parameters": chain.parameter_prefix_bytes[-1] // 4,
                "sample_kib": chain.sample_bytes / 1024,
                "smallest_output_kib": smallest.output_bytes / 1024,
                "after": smallest.name,
                "cuts_below_sample": sum(layer.output_bytes < chain.sample_bytes for layer in cuts),
                "exact": chain.exact,
                "inexact_layers": len(chain.inexact_layers),
            }
        )
    return pd.DataFrame(rows)


def points_table(profile: Profile) -> pd.DataFrame:
    """One row per timed layer, step and sample count of each worker, with the fitted time beside it.

    Times of an emulated worker are this machine's, times its slowdown. Workers without measurement have no rows.
    """
    rows = []
    for name, worker in profile.workers.items():
        times = dict(zip((layer.name for layer in profile.layers), worker.layers, strict=True))
        for point in worker.measurement.points if worker.measurement else ():
            cost = {"forward": times[point.layer].forward, "backward": times[point.layer].backward}.get(point.step)
            rows.append(
                {
                    "worker": name,
                    "layer": point.layer,
                    "step": point.step,
                    "samples": point.samples,
                    "median_ms": point.median_s * worker.slowdown * 1e3,
                    "spread_ms": point.spread_s * worker.slowdown * 1e3,
                    "fitted_ms": (cost.seconds(point.samples) if cost else times[point.layer].update_s) * 1e3,
                }
            )
    return pd.DataFrame(rows)


def residual_table(profile: Profile) -> pd.DataFrame:
    """One row per worker, layer and step: the sample count whose time the cost misses most; the worst rows first.

    ``residual_percent`` is below 0 where the cost is too short. Workers without measurement have no rows.
    """
    worst: dict[tuple[str, str, str], Residual] = {}
    for residual in residuals(profile):
        key = residual.worker, residual.layer, residual.step
        worst[key] = max(worst.get(key, residual), residual, key=lambda found: abs(found.relative))
    rows = [
        {
            "worker": residual.worker,
            "layer": residual.layer,
            "step": residual.step,
            "samples": residual.samples,
            "measured_ms": residual.measured_s * 1e3,
            "cost_ms": residual.cost_s * 1e3,
            "residual_percent": residual.relative * 1e2,
        }
        for residual in sorted(worst.values(), key=lambda found: -abs(found.relative))
    ]
    return pd.DataFrame(rows)


def layer_times_table(profile: Profile, samples: int) -> pd.DataFrame:
    """One row per worker, layer and step: the time of ``samples`` samples."""
    return pd.DataFrame(
        {
            "worker": name,
            "layer": layer.name,
            "step": step,
            "batch_ms": cost.seconds(samples) * 1e3,
            "samples": samples,
        }
        for name, worker in profile.workers.items()
        for layer, times in zip(profile.layers, worker.layers, strict=True)
        for step, cost in (("forward", times.forward), ("backward", times.backward))
    )


def link_table(network: Network) -> pd.DataFrame:
    """One row per direction of each pair."""
    rows = []
    for link in network.links:
        spread = link.measurement
        rows.append(
            {
                "from": link.source,
                "to": link.target,
                "bandwidth_mbps": link.bandwidth_mbps,
                "bandwidth_spread_mbps": spread.bandwidth_spread_mbps if spread else np.nan,
                "latency_ms": link.latency_ms,
                "latency_spread_ms": spread.latency_spread_ms if spread else np.nan,
                "burst_bytes": link.burst_bytes,
            }
        )
    return pd.DataFrame(rows)


def plan_table(plan: Plan) -> pd.DataFrame:
    """One row per worker: its parent, depth, own samples, and the samples it carries."""
    return pd.DataFrame(
        {
            "worker": name,
            "parent": part.parent or "(root)",
            "depth": part.depth,
            "samples": part.samples,
            "carried": plan.carried[name],
        }
        for name, part in plan.workers.items()
    )


def memory_table(measured_bytes: Mapping[str, int], predicted_bytes: Mapping[str, int]) -> pd.DataFrame:
    """One row per worker: what training took of its memory, where that is known, and what was predicted."""
    return pd.DataFrame(
        {
            "worker": name,
            "memory_mb_predicted": size / 1e6,
            "memory_mb_measured": measured_bytes.get(name, np.nan) / 1e6,
        }
        for name, size in predicted_bytes.items()
    )


def times_table(iteration_s: Mapping[str, Sequence[float]], kind: str) -> pd.DataFrame:
    """One row per policy: the median time per iteration, and the quartiles where there is more than one value."""
    rows = []
    for policy, seconds in iteration_s.items():
        low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]) * 1e3
        spread = {"low_ms": low, "high_ms": high} if len(seconds) > 1 else {"low_ms": np.nan, "high_ms": np.nan}
        rows.append({"policy": policy, "iteration_ms": median, **spread, "kind": kind, "iterations": len(seconds)})
    return pd.DataFrame(rows)


def convergence_table(policy: str, losses: Sequence[float], elapsed_s: Sequence[float]) -> pd.DataFrame:
    """One row per iteration: the loss of its mini-batch, and the time at its end."""
    return pd.DataFrame({"policy": policy, "iteration": range(1, len(losses) + 1), "time_s": elapsed_s, "loss": losses})


def plan_alarms(table: pd.DataFrame, *names: str) -> list[Alarm]:
    """Alarms of a table of executed plans, with predicted_ms, observed_ms (NaN: not executed) and late_share.

    ``names``: the columns that name a row.
    """
    rows = table.dropna(subset="observed_ms")
    labels = [", ".join(map(str, row)) for row in rows[list(names)].itertuples(index=False)]
    times_s = zip(rows["predicted_ms"] / 1e3, rows["observed_ms"] / 1e3, strict=True)
    late = alarms.lateness(dict(zip(labels, rows["late_share"], strict=True)))
    return late + alarms.misses(dict(zip(labels, times_s, strict=True)))
