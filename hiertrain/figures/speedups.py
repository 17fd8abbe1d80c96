"""What the policies take, and how much faster one is than the others, as hosts and links change."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from hiertrain.figures.style import BLACK, WIDTH_IN, check_columns, panels, policy_style, use_style

AXES = {
    "cloud_mbps": "to and from the cloud (Mbit/s)",
    "device_edge_mbps": "device-edge (Mbit/s)",
    "edge_slowdown": "edge, times as slow",
    "cloud_slowdown": "cloud, times as slow",
    "batch_size": "mini-batch (samples)",
}
STATED_SPEEDUP = 6.9  # the paper's abstract: up to 6.9x


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
    ticks = [1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100]
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
