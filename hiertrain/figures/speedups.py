"""What the policies take, and how much faster one is than the others, as hosts and links change."""

from collections.abc import Iterable
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from hiertrain.figures.style import (
    BLACK,
    GREY,
    VERMILION,
    WIDTH_IN,
    check_columns,
    panel,
    panels,
    policy_style,
    use_style,
)

AXES = {
    "cloud_mbps": "to and from the cloud (Mbit/s)",
    "device_edge_mbps": "device-edge (Mbit/s)",
    "edge_slowdown": "edge, times as slow",
    "cloud_slowdown": "cloud, times as slow",
    "batch_size": "mini-batch (samples)",
}
STATED_SPEEDUP = 6.9  # the paper's abstract: up to 6.9x
EXECUTION_COLOURS = {"paper": GREY, "overlapped": VERMILION}


def plot_executions(df: pd.DataFrame) -> Figure:
    """How long one iteration takes under each policy, one bar for each execution, the fastest policies first.

    Columns: policy, execution, predicted_ms, and observed_ms with the ends low_ms and high_ms of its error bar (NaN:
    not executed). A bar is what was observed, else what is predicted, hatched. Policies whose bars are the same share
    them.
    """
    check_columns(df, ["policy", "execution", "predicted_ms", "observed_ms", "low_ms", "high_ms"])
    executions = [name for name in EXECUTION_COLOURS if name in set(df["execution"])]
    predicted = df.pivot_table(index="policy", columns="execution", values="predicted_ms", sort=False)[executions]
    groups = predicted.round(6).reset_index().groupby(executions, sort=False)["policy"].agg(list)
    groups = groups.iloc[np.argsort([predicted.loc[names[0]].min() for names in groups], kind="stable")]
    height = 0.8 / len(executions)
    with use_style():
        fig, ax = panel(0.8 + 0.36 * len(groups))
        for index, execution in enumerate(executions):
            rows = df[df["execution"] == execution].set_index("policy").loc[[names[0] for names in groups]]
            y = np.arange(len(groups)) + (index - (len(executions) - 1) / 2) * height
            shown_ms = rows["observed_ms"].fillna(rows["predicted_ms"])
            errors = [rows["observed_ms"] - rows["low_ms"], rows["high_ms"] - rows["observed_ms"]]
            bars = ax.barh(y, shown_ms, height, xerr=errors, color=EXECUTION_COLOURS[execution],
                           label="paper's execution" if execution == "paper" else execution,
                           error_kw={"elinewidth": 0.8})  # fmt: skip
            ax.bar_label(bars, [f" {value:.3g}" for value in shown_ms], fontsize=5)
            ax.plot(rows["predicted_ms"], y, "|", color=BLACK, markersize=6, label="predicted" if not index else None)
            for bar, observed in zip(bars, rows["observed_ms"].notna(), strict=True):
                bar.set_hatch("" if observed else "////")
                bar.set_edgecolor("white")
        ax.set_yticks(np.arange(len(groups)), [fill(", ".join(names), 26) for names in groups])
        ax.invert_yaxis()
        ax.margins(x=0.12)
        ax.set_xlim(left=0)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("time per iteration (ms)")
        fig.legend(loc="outside lower center", ncols=3)
    return fig


def plot_speedups(df: pd.DataFrame, axis: str) -> Figure:
    """How many times as long every other policy takes, over one of ``AXES``, one panel per model.

    Columns: model, policy, ``axis``, predicted, and observed with the ends low and high of its error bar (NaN: not
    executed). Lines are predicted, points observed.
    """
    check_columns(df, ["model", "policy", axis, "predicted", "observed", "low", "high"])
    models = list(dict.fromkeys(df["model"]))
    with use_style():
        fig, axes = panels(len(models), 1, 1.0 + 1.35 * len(models))
        for ax, model in zip(axes, models, strict=True):
            rows = df[df["model"] == model]
            _draw_speedups(ax, rows, axis)
            _set_limits(ax, rows)
            ax.set_title(model, loc="left")
            ax.set_ylabel("speedup")
        axes[-1].set_xlabel(AXES[axis])
        _legend(fig, df["policy"])
    return fig


def plot_sweeps(df: pd.DataFrame) -> Figure:
    """The same for one model, one panel per sweep: the column of that name is its axis, one of ``AXES``.

    Columns: sweep, those that it names, policy, predicted, observed, low, high.
    """
    check_columns(df, ["sweep"])
    sweeps = list(dict.fromkeys(df["sweep"]))
    check_columns(df, [*sweeps, "policy", "predicted", "observed", "low", "high"])
    rows = (len(sweeps) + 1) // 2
    with use_style():
        fig, axes = plt.subplots(rows, 2, figsize=(WIDTH_IN, 0.9 + 1.4 * rows), squeeze=False, sharey=True)
        for ax, sweep in zip(axes.flat, sweeps, strict=False):
            _draw_speedups(ax, df[df["sweep"] == sweep], sweep)
            ax.set_xlabel(AXES[sweep])
        for ax in axes.flat[len(sweeps) :]:
            ax.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("speedup")
        _set_limits(axes[0, 0], df)  # all panels share it
        _legend(fig, df["policy"])
    return fig


def _draw_speedups(ax: Axes, df: pd.DataFrame, axis: str) -> None:
    """Speedups over one axis, both logarithmic."""
    for index, (policy, rows) in enumerate(df.groupby("policy", sort=False)):
        colour, dashes = policy_style(str(policy))
        ordered = rows.sort_values(axis)
        # Lines that coincide stay visible: the later ones are drawn on top, and thinner.
        ax.plot(ordered[axis], ordered["predicted"], linestyle=dashes, color=colour, linewidth=2.8 - 0.2 * index)
        errors = [ordered["observed"] - ordered["low"], ordered["high"] - ordered["observed"]]
        ax.errorbar(ordered[axis], ordered["observed"], yerr=errors, fmt="o", color=colour, markersize=2.5)
    ax.axhline(1, color=BLACK, linewidth=0.6)
    ax.axhline(STATED_SPEEDUP, color=BLACK, linewidth=0.6, linestyle=":")
    ax.set_xscale("log")
    ax.set_yscale("log")
    values = sorted(df[axis].unique())
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ticks = [0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100]
    ax.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
    for direction in (ax.xaxis, ax.yaxis):
        direction.set_minor_formatter(NullFormatter())


def _set_limits(ax: Axes, df: pd.DataFrame) -> None:
    """Room for all speedups, and for the line of equal times; the paper's is seen where it is near."""
    drawn = df[["predicted", "observed", "low", "high"]]
    bottom, top = np.nanmin(drawn), np.nanmax(drawn)
    top = max(top, STATED_SPEEDUP if top > STATED_SPEEDUP / 2 else 1.2)
    ax.set_ylim(min(0.9, bottom * 0.95), top * 1.15)


def _legend(fig: Figure, policies: Iterable[str]) -> None:
    """Below the panels: every policy, and that lines are predicted and points observed."""
    names = list(dict.fromkeys(policies))
    styles = [policy_style(name) for name in names]
    lines = [Line2D([], [], color=colour, ls=dashes) for colour, dashes in styles]
    shown = [Line2D([], [], color=BLACK), Line2D([], [], color=BLACK, marker="o", linestyle="")]
    fig.legend([*lines, *shown], [*names, "line: predicted", "point: real run"], loc="outside lower center", ncols=3)
