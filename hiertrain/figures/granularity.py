"""What plans look like and gain as the network changes, and how they learn."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, NullLocator

from hiertrain.figures.speedups import AXES
from hiertrain.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    WIDTH_IN,
    Source,
    check_columns,
    panels,
    policy_style,
    say_source,
    use_style,
)

WORKER_COLOURS = (ORANGE, GREEN, BLUE)
WORKER_LINES = ((3.2, "-"), (1.9, "-"), (1.0, "--"))  # width and dashes: lines that coincide stay visible
ONE_PROCESS = "one process"
ROUNDING = 2.0**-24  # the least share by which two numbers of float32 can differ
MARKS = {"float16": "^", "bfloat16": "o"}  # of half precision
LEGEND_ROW_IN = 0.13  # height of a legend's row
RATE_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # Mbit/s


def plot_shares(df: pd.DataFrame) -> Figure:
    """What each worker does in the best plan over the rate to the cloud: its samples and its layers, a row per model.

    Columns: model, cloud_mbps, worker (at most three), sample_percent, depth_percent.
    """
    check_columns(df, ["model", "cloud_mbps", "worker", "sample_percent", "depth_percent"])
    models, workers = list(dict.fromkeys(df["model"])), list(dict.fromkeys(df["worker"]))
    with use_style():
        fig, axes = plt.subplots(
            len(models), 2, figsize=(WIDTH_IN, 0.8 + 0.75 * len(models)), sharex=True, sharey=True, squeeze=False
        )
        for row, model in zip(axes, models, strict=True):
            of_model = df[df["model"] == model].sort_values("cloud_mbps")
            samples, depths = (
                of_model.pivot_table(index="cloud_mbps", columns="worker", values=column, sort=False)[workers]
                for column in ("sample_percent", "depth_percent")
            )
            row[0].stackplot(samples.index, samples.to_numpy().T, colors=WORKER_COLOURS, step="mid", linewidth=0)
            for worker, colour, (width, dashes) in zip(workers, WORKER_COLOURS, WORKER_LINES, strict=False):
                row[1].step(depths.index, depths[worker], dashes, where="mid", color=colour, linewidth=width)
            row[0].set_ylabel(model)
        axes[0, 0].set_title("samples (%)", loc="left")
        axes[0, 1].set_title("layers (%)", loc="left")
        say_source(axes[0, 1], "predicted")
        _rate_axis(axes[0, 0], df["cloud_mbps"])
        axes[0, 0].set_ylim(-6, 106)
        for ax in axes[-1]:
            ax.set_xlabel(AXES["cloud_mbps"])
        patches = [Patch(color=colour) for colour in WORKER_COLOURS[: len(workers)]]
        fig.legend(patches, workers, loc="outside lower center", ncols=3)
    return fig


def plot_gains(df: pd.DataFrame) -> Figure:
    """How much faster each policy is than the best non-hybrid plan, over the rate to the cloud, one panel per model.

    Columns: model, policy, cloud_mbps, predicted (%), and observed with the ends low and high of its error bar (NaN:
    not executed). Lines are predicted, points observed.
    """
    check_columns(df, ["model", "policy", "cloud_mbps", "predicted", "observed", "low", "high"])
    models = list(dict.fromkeys(df["model"]))
    with use_style():
        fig, axes = panels(len(models), 1, 0.9 + 0.95 * len(models))
        for ax, model in zip(axes, models, strict=True):
            of_model = df[df["model"] == model].sort_values("cloud_mbps", kind="stable")
            for index, (policy, rows) in enumerate(of_model.groupby("policy", sort=False)):
                colour, dashes = policy_style(str(policy))
                lines, points = rows.dropna(subset="predicted"), rows.dropna(subset="observed")
                # Lines that coincide stay visible: the later ones are drawn on top, and thinner.
                width = max(0.6, 2.0 - 0.4 * index)
                ax.plot(lines["cloud_mbps"], lines["predicted"], dashes, color=colour, linewidth=width, label=policy)
                errors = [points["observed"] - points["low"], points["high"] - points["observed"]]
                ax.errorbar(points["cloud_mbps"], points["observed"], errors, fmt="o", color=colour, markersize=3,
                            markerfacecolor=colour if dashes == "-" else "white")  # fmt: skip
            low, high = of_model[["predicted", "low"]].min().min(), of_model[["predicted", "high"]].max().max()
            ax.set_ylim(min(-2.0, 1.1 * low), max(5.0, 1.1 * high))  # no gain must look like none
            ax.axhline(0, color=BLACK, linewidth=0.6)
            ax.set_title(model, loc="left")
            ax.set_ylabel("gain (%)")
        _rate_axis(axes[-1], df["cloud_mbps"])
        axes[-1].set_xlabel(AXES["cloud_mbps"])
        lines, labels = axes[0].get_legend_handles_labels()
        shown = [Line2D([], [], color=BLACK), Line2D([], [], color=BLACK, marker="o", linestyle="")]
        names = [*labels, "line: predicted", "point: real run"]
        fig.legend([*lines, *shown], names, loc="outside lower center", ncols=3)
    return fig


def plot_learning(df: pd.DataFrame, column: str, source: Source) -> Figure:
    """A measure of what was learnt: the same per iteration whatever the policy, and different per second.

    Columns: policy (a name, or ``ONE_PROCESS``), drawn_as (the policy that has the line's style), iteration, time_s,
    ``column``. The one process computes at its own speed, so it has no line over time.
    """
    check_columns(df, ["policy", "drawn_as", "iteration", "time_s", column])
    policies = list(dict.fromkeys(df["policy"]))
    with use_style():
        fig, axes = panels(1, 2, 1.8 + LEGEND_ROW_IN * len(policies), sharey=True)
        for index, policy in enumerate(policies):
            rows = df[df["policy"] == policy].sort_values("iteration")
            alone = policy == ONE_PROCESS
            colour, dashes = (BLACK, ":") if alone else policy_style(rows["drawn_as"].iloc[0])
            # All lines over iterations coincide; they stay visible since the later ones are thinner.
            width = max(0.6, 2.4 - 0.3 * index)
            axes[0].plot(rows["iteration"], rows[column], dashes, color=colour, linewidth=width, label=policy)
            if not alone:
                axes[1].plot(rows["time_s"], rows[column], dashes, color=colour)
        axes[0].set_xlabel("iteration")
        axes[1].set_xlabel("time (s)")
        axes[0].set_ylabel(column)
        say_source(axes[1], source)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center")
    return fig


def plot_differences(df: pd.DataFrame, source: Source) -> Figure:
    """What rounded messages do to the loss (above), and how far every loss is from that of one process (below).

    Columns: policy (a name), drawn_as (the policy that has the line's style), iteration, loss, difference (as a share
    of the one process's loss; drawn as at least ``ROUNDING``), encoding of the activations; half precision has marks.
    """
    check_columns(df, ["policy", "drawn_as", "iteration", "loss", "difference", "encoding"])
    policies = list(dict.fromkeys(df["policy"]))
    with use_style():
        fig, (above, below) = panels(2, 1, 2.9 + LEGEND_ROW_IN * len(policies))
        for policy in policies:
            rows = df[df["policy"] == policy].sort_values("iteration")
            colour, dashes = policy_style(rows["drawn_as"].iloc[0])
            encoding = rows["encoding"].iloc[0]
            mark = {"color": colour, "marker": MARKS.get(encoding), "markevery": 0.1, "markersize": 4}
            width = 1.8 if encoding == "float32" else 1.0
            above.plot(rows["iteration"], rows["loss"], dashes, linewidth=width, **mark)
            below.plot(rows["iteration"], rows["difference"].clip(lower=ROUNDING), dashes, label=policy, **mark)
        below.set_yscale("log")
        below.set_xlabel("iteration")
        above.set_ylabel("loss")
        below.set_ylabel("relative difference")
        say_source(above, source)
        fig.legend(*below.get_legend_handles_labels(), loc="outside lower center")
    return fig


def _rate_axis(ax: Axes, rates: pd.Series) -> None:
    """Logarithmic, with ticks at some of the rates."""
    ticks = [tick for tick in RATE_TICKS if rates.min() <= tick <= rates.max()]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
