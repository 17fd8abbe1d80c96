"""What the paper and this workbench claim: each with the files that it is judged by, the rule, and what it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd

from hiertrain.figures.speedups import STATED_SPEEDUP
from hiertrain.reproduction import findings
from hiertrain.reproduction.coverage import Need, Rows
from hiertrain.reproduction.findings import BASELINES, SETTING, Finding, Verdict

Certainty = Literal["abstract", "summary by others", "recalled, unverified", "ours"]

NOTHING_STATED = "none stated"
EQUAL_PIPELINES = ("gpipe, 1 micro-batch",)  # which have as many micro-batches as a plan of 09-benchmarks has pieces


@dataclass(frozen=True)
class Statement:
    """A claim before anything is looked at."""

    claim: str
    source: str
    certainty: Certainty
    quantity: str
    tolerance: str
    inputs: tuple[str, ...]  # files in the run's folder, named after their notebook's number
    judge: Callable[..., Finding]  # gets their content in that order: a table, or the results of a record
    needs: tuple[Need, ...]  # what of the whole grid must be there
    paper: str = NOTHING_STATED
    decided: Verdict | None = None  # what a part of the points can show, where they are divisible


GRID = ("tables/06-speedups.csv", "tables/06-policies.csv")


def _plans(
    *policies: str, overlapped: tuple[str, ...] = (), lowest_rate: bool = False, divisible: bool = True
) -> tuple[Need, ...]:
    """The settings of the grid without constraints, with some policies under the paper's execution and overlapped."""

    def chosen(rows: pd.DataFrame) -> pd.DataFrame:
        named = {"paper": policies, "overlapped": overlapped}
        some = [findings.free(rows, execution) for execution in named]
        rows = pd.concat(own[own["policy"].isin(names)] for own, names in zip(some, named.values(), strict=True))
        return rows[rows["cloud_mbps"] == rows["cloud_mbps"].min()] if lowest_rate else rows

    return (Need("tables/06-policies.csv", (*SETTING, "policy"), chosen=chosen, divisible=divisible),)


def _first_comparison(drift: pd.DataFrame) -> pd.DataFrame:
    return drift[drift["iteration"] == drift["iteration"].min()]


def _where(column: str, *values: object) -> Rows:
    return lambda rows: rows[rows[column].isin(values)]


def _trained(notebook: str) -> Need:
    return Need(f"records/{notebook}.json", ("dataset", "batch_size"), table="training", amount="iterations")


LAYERS = Need("tables/01-layers.csv", ("model", "layer"))
TRAININGS = Need("tables/08-convergence.csv", ("policy",))
STATED = f"up to {STATED_SPEEDUP}x"
REACHED = (
    f"holds if the largest observed one is at least {STATED_SPEEDUP}x; open if its interval holds that number, or if "
    "only what was too slow to be executed is predicted to reach it"
)
UNBEATEN = (
    f"holds if none is observed to be over {1 + findings.NOISE:g} times as fast; fails if one is, with quartiles "
    "apart and no paced actions that came too late; else open"
)
PREDICTED = (
    f"holds if {findings.ENOUGH:.0%} of the plans are within {findings.CLOSE}%, and half are within "
    f"{findings.CLOSER}%; open if they are but for noise: measured from the nearer quartile, without plans whose paced "
    "actions came too late; computing is paced to the profile that predicts, so this is about messages, links and order"
)
SPEEDUPS = (
    Statement(
        f"Training is {STATED} faster than cloud-based training, read as everything on the cloud",
        "abstract",
        "abstract",
        "largest speedup over all-cloud",
        REACHED,
        GRID,
        partial(findings.reaches, "all-cloud", False),
        _plans("hiertrain", "all-cloud"),
        STATED,
        decided="holds",
    ),
    Statement(
        f"Training is {STATED} faster than cloud-based training, read as two tiers: device and cloud",
        "abstract",
        "abstract",
        "largest speedup over jointdnn",
        REACHED,
        GRID,
        partial(findings.reaches, "jointdnn", False),
        _plans("hiertrain", "jointdnn"),
        STATED,
        decided="holds",
    ),
    *(
        Statement(
            f"At the lowest rate to the cloud the speedup over {policy} is as large as the paper's for some model",
            "target of this reproduction",
            "ours",
            f"speedup over {policy} at the lowest rate",
            REACHED,
            GRID,
            partial(findings.reaches, policy, True),
            _plans("hiertrain", policy, lowest_rate=True),
            STATED,
            decided="holds",
        )
        for policy in ("all-cloud", "jointdnn")
    ),
)
PLANS = (
    Statement(
        "The scheduler's solution gives the minimum training time: nothing that trains the same is faster",
        "abstract",
        "abstract",
        "times as fast as hiertrain, the fastest other policy",
        UNBEATEN,
        GRID,
        partial(findings.unbeaten, (*BASELINES, "hiertrain+"), "hiertrain", "paper"),
        _plans("hiertrain", *BASELINES, "hiertrain+"),
        decided="fails",
    ),
    Statement(
        "The scheduler proves its solutions",
        "ours",
        "ours",
        "share of the searches that end with a proof",
        f"holds if all do: what is proven is within {findings.PROOF:g} of the plan's time",
        ("records/03-optimization.json", "records/10-scheduler.json"),
        findings.proven,
        (
            Need("records/03-optimization.json", ("model", "batch_size", "uplink_mbps"), "proofs", divisible=True),
            Need(
                "records/10-scheduler.json", ("model", "batch_size", "uplink_mbps", "way"), "recorded", divisible=True
            ),
        ),
        decided="fails",
    ),
    Statement(
        "Dividing layers and samples is usually faster than the better of dividing layers only and samples only",
        "ours",
        "ours",
        f"share of the settings in which it is, by more than {findings.NOISE:.0%}",
        "holds if it is in more than half of them; open if the interval of the share holds a half",
        GRID,
        findings.hybrid,
        _plans("hiertrain", "layer-parallel", "data-parallel", divisible=False),
    ),
    Statement(
        "Hybrid parallelism is never slower than a baseline that trains the same",
        "a reading of the abstract",
        "ours",
        "times as fast as hiertrain, the fastest baseline",
        UNBEATEN,
        GRID,
        partial(findings.unbeaten, BASELINES, "hiertrain", "paper"),
        _plans("hiertrain", *BASELINES),
        decided="fails",
    ),
    Statement(
        "The plan adapts to the network",
        "abstract",
        "abstract",
        "different plans over the rates to the cloud, most of all models",
        "holds if some model has more than one; where one plan is the best at all rates, nothing is to be adapted",
        ("tables/06-policies.csv",),
        findings.adapts,
        _plans("hiertrain"),
        decided="holds",
    ),
    Statement(
        "Most parameters sit in the last, fully connected layers",
        "summary by others",
        "summary by others",
        "share of the parameters",
        "holds if it is more than half",
        ("tables/01-layers.csv",),
        findings.connected,
        (LAYERS,),
    ),
    Statement(
        "The fully connected layers stay on one worker",
        "summary by others",
        "summary by others",
        "share of the plans of several workers",
        "holds if in all of them only the root reaches these layers (where 01-models lists none: the last layer)",
        ("tables/06-policies.csv", "tables/01-layers.csv"),
        findings.kept,
        (*_plans("hiertrain"), LAYERS),
        decided="fails",
    ),
)
OVERLAPPED = 1.4  # times as fast as hiertrain, geometric mean: simulated before anything was built
OURS = (
    Statement(
        f"Overlapped iterations make hiertrain+ at least {OVERLAPPED}x as fast as the paper's plans and execution",
        "target of this reproduction",
        "ours",
        "speedup over hiertrain under the paper's execution, geometric mean",
        f"holds if the lower end of its interval is at least {OVERLAPPED}; fails if the upper end is below; else open",
        ("tables/06-policies.csv",),
        partial(findings.overlaps, OVERLAPPED),
        _plans("hiertrain", overlapped=("hiertrain+",), divisible=False),
    ),
    Statement(
        "Overlapped hiertrain+ is nowhere slower than hiertrain under the paper's execution",
        "target of this reproduction",
        "ours",
        "speedup over hiertrain under the paper's execution, the least",
        f"holds if it is at least {1 / (1 + findings.NOISE):.2f} everywhere; fails if an interval ends below 1 where "
        "it is not; else open",
        ("tables/06-policies.csv",),
        findings.never_slower,
        _plans("hiertrain", overlapped=("hiertrain+",)),
        decided="fails",
    ),
    Statement(
        "Where iterations overlap, nothing that trains the same is faster than hiertrain+",
        "ours",
        "ours",
        "times as fast as hiertrain+, the fastest other policy",
        UNBEATEN,
        GRID,
        partial(findings.unbeaten, (*BASELINES, "hiertrain"), "hiertrain+", "overlapped"),
        _plans(overlapped=("hiertrain", "hiertrain+", *BASELINES)),
        decided="fails",
    ),
    Statement(
        "Training on three machines is the same as on one",
        "ours",
        "ours",
        "largest difference of a weight early on, as a share of the largest weight",
        f"holds if at most {findings.SAME_WEIGHT:g}, and accuracies end at most {findings.SAME_ACCURACY} apart",
        ("tables/04-drift.csv", "tables/04-accuracy.csv", "records/04-training.json"),
        findings.same_training,
        (
            _trained("04-training"),
            Need("tables/04-drift.csv", ("iteration",), chosen=_first_comparison),
            Need("tables/04-accuracy.csv", ("trained on",)),
        ),
    ),
    Statement(
        "Every policy that sends float32 learns the same from the same mini-batches",
        "ours",
        "ours",
        "largest difference of a loss early on, as a share of it",
        f"holds if at most {findings.SAME_LOSS:g}, and accuracies end at most {findings.SAME_ACCURACY} apart",
        ("tables/08-convergence.csv", "records/08-convergence.json"),
        findings.same_losses,
        (_trained("08-convergence"), TRAININGS),
    ),
    Statement(
        "JALAD's 8-bit activations cost no accuracy as far as was trained",
        "ours",
        "ours",
        "accuracy below that of one process",
        f"holds if at most {findings.SAME_ACCURACY}",
        ("tables/08-convergence.csv", "records/08-convergence.json"),
        findings.eight_bits,
        (_trained("08-convergence"), TRAININGS),
    ),
    *(
        Statement(
            f"The time per iteration is predicted from measured layers and links{where}",
            "ours",
            "ours",
            f"share of the plans that are predicted within {findings.CLOSE}%",
            PREDICTED,
            ("tables/05-predictions.csv",),
            partial(findings.predicted_plans, execution),
            (
                Need(
                    "tables/05-predictions.csv",
                    ("model", "uplink_mbps", "plan", "execution"),
                    chosen=_where("execution", execution),
                ),
            ),
        )
        for execution, where in (("paper", ""), ("overlapped", ", also where iterations overlap"))
    ),
    Statement(
        "The time per iteration is predicted from recorded profiles and nominal rates",
        "ours",
        "ours",
        f"share of the plans that are predicted within {findings.CLOSE}%",
        PREDICTED,
        ("tables/06-policies.csv",),
        findings.predicted_grid,
        (Need("tables/06-policies.csv", (*SETTING, "policy")),),
    ),
    *(
        Statement(
            f"The runtime costs no more than {what}",
            "target of this reproduction",
            "ours",
            f"time per iteration over the rival's, {comparison}",
            f"holds if it is at most {aim:g} in every case, with the upper end of its interval; fails if even a lower "
            "end is above; else open",
            ("tables/09-benchmarks.csv",),
            partial(findings.overhead, comparison, rivals, aim),
            (
                Need(
                    "tables/09-benchmarks.csv",
                    ("model", "batch_size", "comparison", "rival"),
                    chosen=_where("comparison", comparison),
                    amount="blocks",
                    divisible=True,
                ),
            ),
            decided="fails",
        )
        for comparison, what, rivals, aim in (
            ("one worker", "a plain loop", ("plain",), 1.03),
            ("data-parallel", "DistributedDataParallel", ("ddp", "ddp-scatter"), 1.0),
            ("layer split", "torch.distributed.pipelining", EQUAL_PIPELINES, 1.0),
        )
    ),
)
STATEMENTS = (*SPEEDUPS, *PLANS, *OURS)
