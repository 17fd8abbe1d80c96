"""Rules: what the tables of a run say about a claim. Each takes tables, or results of records, and returns a Finding.

Speedups are another policy's time per iteration over HierTrain's; they and the plans are those of the grid of
06-speedups. Raises KeyError for a table without a column that a rule needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import numpy as np
import pandas as pd

from hiertrain.figures.speedups import STATED_SPEEDUP
from hiertrain.results.alarms import LATE

Verdict = Literal["holds", "fails", "open", "not in this grid"]

NOISE = 0.05  # two executions of a plan may differ by this share of its time
PROOF = 1e-5  # share of a plan's time by which what is proven may stay below it: the solver rounds costs to integers
# What rounding may change: a weight as a share of the largest one, a loss as a share of it, and a few test samples.
SAME_WEIGHT, SAME_LOSS, SAME_ACCURACY = 1e-4, 1e-4, 0.02
CLOSE, CLOSER, ENOUGH = 10, 5, 0.95  # percent of the time that most and half of the predictions may miss; share of most
# What trains the same as HierTrain: JALAD, which rounds activations, does not.
BASELINES = ("all-device", "all-edge", "all-cloud", "jointdnn", "jointdnn+", "data-parallel", "layer-parallel")
# The names of the fully connected layers, by the models of 01-models.
FULLY_CONNECTED = r"fc\d*$|classifier|heads"
# The columns that make up a setting of 06-speedups.
SETTING = [
    "model",
    "batch_size",
    "execution",
    "sample_encoding",
    "device_edge_mbps",
    "cloud_mbps",
    "device_slowdown",
    "edge_slowdown",
    "cloud_slowdown",
    "samples_stay",
    "device_memory",
]
# The models that the paper is recalled to use.
PAPER_MODELS = ("lenet5", "alexnet-cifar", "alexnet")
NOTHING_TO_COMPARE = "no setting of this run has hiertrain and a policy to compare it with"
ONLY_PREDICTED = "only predicted here: 06-speedups was told to execute nothing"
TOO_SLOW = "only predicted here: the plans that it is about are too slow to be executed"


@dataclass(frozen=True)
class Finding:
    """What a run says about a claim. A number is NaN where there is none."""

    verdict: Verdict
    reason: str
    predicted: float = nan
    measured: float = nan
    low: float = nan
    high: float = nan
    where: str = ""  # the configuration that gave the numbers
    kind: str = ""  # of what was observed: measured, emulated; predicted or exact where nothing had to be executed


def free(rows: pd.DataFrame, execution: str) -> pd.DataFrame:
    """The rows of settings under an execution in which nothing keeps samples on the device."""
    return rows[(rows["execution"] == execution) & ~rows["samples_stay"] & (rows["device_memory"] == 1)]


def reaches(policy: str, lowest_rate: bool, speedups: pd.DataFrame, policies: pd.DataFrame) -> Finding:
    """Whether the largest observed speedup over a policy is as large as the paper's.

    Open where its interval holds the paper's, and where that is predicted only of what was too slow to be executed.
    """
    rows = _pairs(speedups, policies, [policy])
    if rows.empty:
        return Finding("open", f"no setting of this run has {policy} and hiertrain")
    if lowest_rate:
        rows = rows[rows["cloud_mbps"] == rows["cloud_mbps"].min()]
    foreseen = _most(rows, "predicted")
    observed = rows.dropna(subset="observed")
    if observed.empty:
        return _only_predicted(speedups, foreseen, foreseen["predicted"])
    best = _most(observed, "observed")
    reason = (
        f"{best['observed']:.2f}x where {policy} is [{best['plan']}] and hiertrain [{best['plan_of']}]{_late(best)}"
    )
    reached, untried = best["observed"] >= STATED_SPEEDUP, np.isnan(foreseen["observed"])
    if untried and foreseen["predicted"] > best["observed"]:
        reason += f"; {foreseen['predicted']:.2f}x is predicted where {policy} is too slow to be executed"
    unsure = best["low"] < STATED_SPEEDUP <= best["high"] or (
        untried and not reached and foreseen["predicted"] >= STATED_SPEEDUP
    )
    return _found("open" if unsure else "holds" if reached else "fails", reason, best)


def unbeaten(
    others: tuple[str, ...], of: str, execution: str, speedups: pd.DataFrame, policies: pd.DataFrame
) -> Finding:
    """Whether none of the others is observed to be faster than the policy ``of`` by more than noise.

    The numbers are how many times as fast the fastest one is. Open where that is so, but quartiles overlap, or paced
    actions came too late.
    """
    rows = _pairs(speedups, policies, others, of, execution)
    if rows.empty:
        return Finding("open", NOTHING_TO_COMPARE)
    turned = {"predicted": "predicted", "observed": "observed", "low": "high", "high": "low"}
    rows = rows.assign(**{name: 1 / rows[source] for name, source in turned.items()})
    ratios = rows.dropna(subset="observed")
    if ratios.empty:
        foreseen = _most(rows, "predicted")
        return _only_predicted(speedups, foreseen, foreseen["predicted"])
    tried = len(ratios[SETTING].drop_duplicates())
    faster = ratios[ratios["observed"] > 1 + NOISE]
    if faster.empty:
        closest = _most(ratios, "observed")
        return _found("holds", f"in {tried} settings; the closest is {closest['policy']}{_late(closest)}", closest)
    apart = faster[(faster["low"] > 1) & (faster[["late_share", "late_share_of"]].max(axis="columns") <= LATE)]
    fastest = _most(faster if apart.empty else apart, "observed")
    counts = ", ".join(f"{name} {count}" for name, count in faster["policy"].value_counts(sort=False).items())
    foreseen = int((faster["predicted"] > 1).sum())
    star = ", which knows that hiertrain is a star planned with linear costs" if foreseen and of == "hiertrain" else ""
    reason = (
        f"faster in some of {tried} settings: {counts}; the cost model foresees {foreseen} of these {len(faster)}"
        f"{star}; by most "
        f"it is {fastest['policy']}{_late(fastest)}"
    )
    return _found("open" if apart.empty else "fails", reason, fastest)


def hybrid(speedups: pd.DataFrame, policies: pd.DataFrame) -> Finding:
    """In which share of the settings hiertrain is faster than the better of layers alone and samples alone.

    By more than noise; a setting without interval counts by its value at both ends of the share's.
    """
    rows = _pairs(speedups, policies, ["layer-parallel", "data-parallel"])
    if rows.empty:
        return Finding("open", NOTHING_TO_COMPARE)
    share = float((rows.groupby(SETTING)["predicted"].min() > 1 + NOISE).mean())
    observed = rows.dropna(subset="observed")
    if observed.empty:
        return _only_predicted(speedups, _most(rows, "predicted"), share)
    better = observed.loc[observed.groupby(SETTING)["observed"].idxmin()]
    ratios = {name: better[name].fillna(better["observed"]) for name in ("observed", "low", "high")}
    shares = {name: float((ratio > 1 + NOISE).mean()) for name, ratio in ratios.items()}
    won = (better["observed"] > 1 + NOISE).sum()
    most = _most(better, "observed")
    return Finding(
        "open" if shares["low"] <= 0.5 < shares["high"] else "holds" if shares["observed"] > 0.5 else "fails",
        f"in {won} of {len(better)} settings, by most {most['observed']:.2f}x{_late(most)}",
        predicted=share,
        measured=shares["observed"],
        low=shares["low"],
        high=shares["high"],
        where=f"most: {_where(most)}",
        kind=str(most["kind"]),
    )


def adapts(policies: pd.DataFrame) -> Finding:
    """Whether hiertrain's plan changes along each model's longest sweep of the rate to the cloud."""
    same = [key for key in SETTING if key != "cloud_mbps"]
    sweeps, policies = {}, free(policies, "paper")
    for model, rows in policies[policies["policy"] == "hiertrain"].groupby("model", sort=False):
        groups = [group for _, group in rows.groupby(same, sort=False)]
        sweeps[model] = max(groups, key=len)
    sweeps = {model: sweep for model, sweep in sweeps.items() if len(sweep) > 1}
    if not sweeps:
        return Finding("open", "the grid of this run has one rate to the cloud only")
    found = {model: sweep["plan"].nunique() for model, sweep in sweeps.items()}
    cuts = {model: sweep["division"].nunique() for model, sweep in sweeps.items()}
    rates = {model: sorted(sweep["cloud_mbps"]) for model, sweep in sweeps.items()}
    told = (f"{model} {found[model]} at {len(rates[model])} rates ({cuts[model]} but for samples)" for model in sweeps)
    return Finding(
        "holds" if max(found.values()) > 1 else "fails",
        f"different plans: {', '.join(told)}",
        predicted=float(max(found.values())),
        where="; ".join(f"{model} at {own[0]:g} to {own[-1]:g} Mbit/s to the cloud" for model, own in rates.items()),
        kind="predicted",
    )


def overlaps(target: float, policies: pd.DataFrame) -> Finding:
    """How many times as fast hiertrain+ with overlapped iterations is as hiertrain under the paper's execution.

    Geometric mean over the settings in which both were executed, with those of the ends of each one's interval.
    """
    rows = _both_executions(policies)
    if rows.empty:
        return Finding("open", NOTHING_TO_COMPARE)
    observed = rows.dropna(subset="observed")
    if observed.empty:
        return _only_predicted(rows, _least(rows, "predicted"), _geometric_mean(rows["predicted"]))
    means = {name: _geometric_mean(observed[name]) for name in ("observed", "low", "high")}
    least, most = _least(observed, "observed"), observed["observed"].max()
    return Finding(
        "holds" if means["low"] >= target else "fails" if means["high"] < target else "open",
        f"geometric mean over {len(observed)} settings; from {least['observed']:.2f}x to {most:.2f}x",
        predicted=_geometric_mean(observed["predicted"]),
        measured=means["observed"],
        low=means["low"],
        high=means["high"],
        where=f"least: {_where(least)}",
        kind=str(least["kind"]),
    )


def never_slower(policies: pd.DataFrame) -> Finding:
    """Whether overlapped hiertrain+ is observed to be slower anywhere than the paper's hiertrain, beyond noise."""
    rows = _both_executions(policies)
    if rows.empty:
        return Finding("open", NOTHING_TO_COMPARE)
    observed = rows.dropna(subset="observed")
    if observed.empty:
        foreseen = _least(rows, "predicted")
        return _only_predicted(rows, foreseen, foreseen["predicted"])
    least = _least(observed, "observed")
    slower = observed[observed["observed"] < 1 / (1 + NOISE)]
    surely = slower[slower["high"] < 1]
    return _found(
        "holds" if slower.empty else "open" if surely.empty else "fails",
        f"slower in {len(slower)} of {len(observed)} settings by more than {NOISE:.0%}",
        least,
    )


def _both_executions(policies: pd.DataFrame) -> pd.DataFrame:
    """One row per setting without constraints: the paper's time of hiertrain over the overlapped one of hiertrain+."""
    same = [key for key in SETTING if key != "execution"]
    paper, overlapped = (
        rows[rows["policy"] == policy]
        for policy, rows in (("hiertrain", free(policies, "paper")), ("hiertrain+", free(policies, "overlapped")))
    )
    pairs = overlapped.merge(paper, on=same, suffixes=("", "_paper"))
    return pairs.assign(
        predicted=pairs["predicted_ms_paper"] / pairs["predicted_ms"],
        observed=pairs["observed_ms_paper"] / pairs["observed_ms"],
        low=pairs["low_ms_paper"] / pairs["high_ms"],
        high=pairs["high_ms_paper"] / pairs["low_ms"],
    )


def connected(layers: pd.DataFrame) -> Finding:
    """Which share of the parameters sits in fully connected layers; the paper's models decide, if they are listed."""
    within = layers["parameter_kib"].where(layers["layer"].str.match(FULLY_CONNECTED), 0)
    models = layers["model"]
    shares = within.groupby(models, sort=False).sum() / layers["parameter_kib"].groupby(models, sort=False).sum()
    of_paper = shares[shares.index.isin(PAPER_MODELS)]
    judged = shares if of_paper.empty else of_paper
    if judged.empty:
        return Finding("open", "no layers are listed in this run")
    return Finding(
        "holds" if judged.min() > 0.5 else "fails",
        "; ".join(f"{share:.1%} of {model}" for model, share in shares.items()),
        measured=float(judged.min()),
        where=f"least of {', '.join(map(str, judged.index))}",
        kind="exact",
    )


def kept(policies: pd.DataFrame, layers: pd.DataFrame) -> Finding:
    """Whether hiertrain's plans of several workers leave the fully connected layers to the root.

    For a model whose layers are not listed: whether they leave the last layer to it.
    """
    plans = free(policies, "paper")
    plans = plans[(plans["policy"] == "hiertrain") & (plans["workers"] > 1)]
    if plans.empty:
        return Finding("open", "no plan of this run has several workers")
    position = layers.groupby("model").cumcount()
    before = position[layers["layer"].str.match(FULLY_CONNECTED)].groupby(layers["model"]).min()  # layers before these
    good = plans["other_depth"] <= plans["model"].map(before).fillna(plans["root_depth"] - 1)
    reason, where = f"{good.sum()} of {len(plans)} plans of several workers", "the whole grid"
    if not good.all():
        broken = plans[~good].iloc[0]
        reason, where = f"{reason}, not for example [{broken['plan']}]", _where(broken)
    return Finding(
        "holds" if good.all() else "fails", reason, predicted=float(good.mean()), where=where, kind="predicted"
    )


def proven(optimization: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Finding:
    """Whether the searches of 03-optimization and of 10-scheduler ended with a proof."""
    proofs, searches = pd.DataFrame(optimization["proofs"]), pd.DataFrame(scheduler["recorded"])
    if proofs.empty or searches.empty:
        return Finding("open", "nothing was searched for in this run")
    optimal = proofs["status"] == "optimal"
    searches = searches[searches["way"] != "programmes"]  # the paper's way, which proves nothing
    gaps = 1 - searches["bound_ms"] / searches["objective_ms"]
    ended, tried = int(optimal.sum() + (gaps <= PROOF).sum()), len(optimal) + len(gaps)
    above = gaps.clip(lower=0).max()
    return Finding(
        "holds" if ended == tried else "fails",
        f"{ended} of {tried} searches ended with a proof; plans are at most {above:.0e} above their bound",
        measured=ended / tried,
        where="recorded profiles",
        kind="exact",
    )


def same_training(drift: pd.DataFrame, scores: pd.DataFrame, record: Mapping[str, Any]) -> Finding:
    """Whether weights and accuracy in 04-training are those of one machine."""
    if drift.empty or scores.empty:
        return Finding("open", "nothing was trained in this run")
    relative = drift["largest_difference"] / drift["largest_weight"]
    first, iterations = float(relative.iloc[0]), drift["iteration"].iloc[0]
    apart = float(scores["test accuracy"].max() - scores["test accuracy"].min())
    return Finding(
        "holds" if first <= SAME_WEIGHT and apart <= SAME_ACCURACY else "fails",
        f"training magnifies the difference to {relative.max():.0e} later, and accuracies end {apart:.4f} apart",
        measured=first,
        where=f"04-training, after {iterations} iterations",
        kind=record["kind"],
    )


def same_losses(final: pd.DataFrame, record: Mapping[str, Any]) -> Finding:
    """Whether every plan that sends float32 has the losses of one process in 08-convergence, and its accuracy."""
    single, exact = final[final["encoding"].isna()], final[final["encoding"] == "float32"]
    if single.empty or exact.empty:
        return Finding("open", "one process and a plan were not both trained in this run")
    alone, worst = single.iloc[0], _most(exact, "first_difference")
    apart = float((exact["accuracy"] - alone["accuracy"]).abs().max())
    good = worst["first_difference"] <= SAME_LOSS and apart <= SAME_ACCURACY
    return Finding(
        "holds" if good else "fails",
        f"in {len(exact)} trainings, whose accuracies end at most {apart:.4f} from that of one process",
        measured=float(worst["first_difference"]),
        where=f"08-convergence: {worst['policy']}",
        kind=record["kind"],
    )


def eight_bits(final: pd.DataFrame, record: Mapping[str, Any]) -> Finding:
    """Whether 8-bit activations cost accuracy in 08-convergence."""
    single, rounded = final[final["encoding"].isna()], final[final["encoding"] == "uint8"]
    if single.empty or rounded.empty:
        return Finding("open", "one process and 8-bit activations were not both trained in this run")
    alone, worst = single.iloc[0], rounded.nsmallest(1, "accuracy").iloc[0]
    lost = float(alone["accuracy"] - worst["accuracy"])
    return Finding(
        "holds" if lost <= SAME_ACCURACY else "fails",
        f"losses differ by up to {rounded['first_difference'].max():.0e} at first, and are {worst['last_loss']:.3f} "
        f"instead of {alone['last_loss']:.3f} in the end",
        measured=lost,
        where=f"08-convergence: {worst['policy']}, after {worst['iteration']:g} iterations",
        kind=record["kind"],
    )


def predicted_plans(execution: str, plans: pd.DataFrame) -> Finding:
    """Whether the times of 05-prediction under an execution are predicted."""
    plans = plans[plans["execution"] == execution]
    if plans.empty:
        return Finding("open", "no plan was executed in this run")
    models, rates = plans["model"].unique(), plans["uplink_mbps"].unique()
    where = f"{', '.join(models)}; {', '.join(f'{rate:g}' for rate in rates)} Mbit/s to the cloud"
    return _predictions(plans, where, str(plans["kind"].iloc[0]))


def predicted_grid(policies: pd.DataFrame) -> Finding:
    """Whether the times of the grid are predicted; the same work counts once."""
    executed = policies.dropna(subset="observed_ms").drop_duplicates("record")
    if executed.empty:
        return Finding("open", ONLY_PREDICTED)
    errors = 100 * (executed["predicted_ms"] / executed["observed_ms"] - 1)
    worst = _most(executed.assign(size=errors.abs()), "size")
    return _predictions(executed, f"worst: {worst['policy']}, {_where(worst)}", str(worst["kind"]))


def overhead(comparison: str, rivals: Sequence[str], aim: float, benchmarks: pd.DataFrame) -> Finding:
    """Whether the runtime takes at most ``aim`` times as long as what one would otherwise use, at its best."""
    rows = benchmarks[(benchmarks["comparison"] == comparison) & benchmarks["rival"].isin(rivals)]
    if rows.empty:
        return Finding("open", f"09-benchmarks has no comparison of {comparison!r} in this run")
    slow, surely, unsure = rows["ratio"] > aim, rows["low"] > aim, rows["high"] > aim
    worst = _most(rows[surely] if surely.any() else rows, "ratio")
    verdict = "fails" if surely.any() else "open" if unsure.any() else "holds"
    return Finding(
        verdict,
        f"at most {aim:g} times as long in {len(rows) - slow.sum()} of {len(rows)} cases, "
        f"with the upper ends of intervals in {len(rows) - unsure.sum()}",
        measured=float(worst["ratio"]),
        low=float(worst["low"]),
        high=float(worst["high"]),
        where=f"{worst['model']}, {worst['batch_size']} samples, against {worst['rival']}",
        kind="measured",
    )


def _predictions(plans: pd.DataFrame, where: str, kind: str) -> Finding:
    """``plans``: what each was predicted to take, what it took, the quartiles, and how late paced actions came."""
    sizes = 100 * (plans["predicted_ms"] / plans["observed_ms"] - 1).abs()
    # The least error that noise leaves: to the nearer quartile, none within them or where paced actions were late.
    nearest_ms = plans["predicted_ms"].clip(plans["low_ms"], plans["high_ms"]).fillna(plans["observed_ms"])
    least = 100 * (plans["predicted_ms"] / nearest_ms - 1).abs().where(plans["late_share"].fillna(0) <= LATE, 0)
    share, median = float((sizes <= CLOSE).mean()), float(sizes.median())
    close, possible = ((errors <= CLOSE).mean() >= ENOUGH and errors.median() <= CLOSER for errors in (sizes, least))
    return Finding(
        "holds" if close else "open" if possible else "fails",
        f"{(sizes <= CLOSE).sum()} of {len(sizes)} plans; median error {median:.1f}%, worst {sizes.max():.1f}%",
        measured=share,
        where=where,
        kind=kind,
    )


def _pairs(
    speedups: pd.DataFrame,
    policies: pd.DataFrame,
    others: Sequence[str],
    of: str = "hiertrain",
    execution: str = "paper",
) -> pd.DataFrame:
    """One row per setting without constraints and other policy: the speedup over it, and both plans."""
    plans = free(policies, execution)[[*SETTING, "policy", "plan", "late_share"]]
    ours, speedups = plans[plans["policy"] == of].drop(columns="policy"), speedups[speedups["of"] == of]
    speedups = speedups.astype({key: plans[key].dtype for key in SETTING})  # an empty table has types of its own
    pairs = speedups.merge(plans, on=[*SETTING, "policy"]).merge(ours, on=SETTING, suffixes=("", "_of"))
    return pairs[pairs["policy"].isin(others)]


def _most(rows: pd.DataFrame, column: str) -> pd.Series:
    """The row with the largest value."""
    return rows.nlargest(1, column).iloc[0]


def _least(rows: pd.DataFrame, column: str) -> pd.Series:
    """The row with the smallest value."""
    return rows.nsmallest(1, column).iloc[0]


def _geometric_mean(ratios: pd.Series) -> float:
    return float(np.exp(np.log(ratios).mean()))


def _found(verdict: Verdict, reason: str, row: pd.Series) -> Finding:
    numbers = {name: float(row[name]) for name in ("predicted", "low", "high")}
    return Finding(
        verdict, reason, measured=float(row["observed"]), **numbers, where=_where(row), kind=str(row["kind"])
    )


def _only_predicted(speedups: pd.DataFrame, row: pd.Series, predicted: float) -> Finding:
    reason = ONLY_PREDICTED if speedups["observed"].isna().all() else TOO_SLOW
    return Finding("open", reason, predicted=float(predicted), where=_where(row), kind="predicted")


def _where(row: pd.Series) -> str:
    return (
        f"{row['model']}, {row['batch_size']} samples as {row['sample_encoding']}, {row['execution']} execution; "
        f"{row['device_edge_mbps']:g} Mbit/s "
        f"device-edge, {row['cloud_mbps']:g} to the cloud; device, edge, cloud {row['device_slowdown']:g}, "
        f"{row['edge_slowdown']:g}, {row['cloud_slowdown']:g} times as slow as the recorded profile"
    )


def _late(row: pd.Series) -> str:
    """A note where this machine did not keep the pace of the hosts that it emulated."""
    late = max(row["late_share"], row["late_share_of"])
    return f"; paced actions came too late for {late:.0%} of the time there" if late > LATE else ""
