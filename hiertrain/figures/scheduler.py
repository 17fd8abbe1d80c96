"""The scheduler: how long it takes, what rounding loses, and how both grow."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from hiertrain.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    MODEL_COLOURS,
    VERMILION,
    check_columns,
    panel,
    panels,
    say_source,
    use_style,
)

# Ways to a plan: label, colour, marker.
WAYS = {
    "trees": ("scheduler, trees", GREEN, "s"),
    "stars": ("scheduler, stars", BLUE, "o"),
    "programmes": ("paper's way, stars", VERMILION, "^"),
}
AXES = {"layers": "layers", "batch_size": "mini-batch (samples)", "workers": "workers"}


def plot_solve_times(df: pd.DataFrame) -> Figure:
    """How long each way to a plan takes, by model: median and range over the problems.

    Columns: model, way, solve_s.
    """
    check_columns(df, ["model", "way", "solve_s"])
    models = list(dict.fromkeys(df["model"]))
    with use_style():
        fig, ax = panel(2.2)
        for shift, way in zip([-0.2, 0.0, 0.2], WAYS, strict=True):
            rows = df[df["way"] == way].assign(x=[models.index(m) + shift for m in df.loc[df["way"] == way, "model"]])
            _draw_way(ax, rows, "x", way, line="")
        ax.set_xticks(range(len(models)), models)
        ax.set_xlim(-0.5, len(models) - 0.5)
        ax.grid(visible=False, axis="x")
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylabel("time to the plan (s)")
        say_source(ax, "measured")
        fig.legend(loc="outside lower center", ncols=3)
    return fig


def plot_gaps(df: pd.DataFrame) -> Figure:
    """What the paper's way tells of the best star: rounded plans are above it, its own bound is below.

    Columns: model, batch_size, gap_percent, bound_below_percent. One bar per problem.
    """
    check_columns(df, ["model", "batch_size", "gap_percent", "bound_below_percent"])
    models, sizes = list(dict.fromkeys(df["model"])), sorted(df["batch_size"].unique())
    with use_style():
        fig, ax = panel(2.2)
        for index, model in enumerate(models):
            rows, colour = df[df["model"] == model], MODEL_COLOURS[index % len(MODEL_COLOURS)]
            x = [sizes.index(size) + 0.12 * (index - (len(models) - 1) / 2) for size in rows["batch_size"]]
            ax.vlines(x, -rows["bound_below_percent"], rows["gap_percent"], color=colour)
            ax.plot(x, rows["gap_percent"], "o", color=colour, label=model)
            ax.plot(x, -rows["bound_below_percent"], "_", color=colour, markersize=6)
        ax.axhline(0.0, color=BLACK, linewidth=0.8)
        ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        ax.grid(visible=False, axis="x")
        ax.set_xlabel("mini-batch (samples)")
        ax.set_ylabel("against the best star (%)")
        say_source(ax, "dots: rounded plans; ticks: their bounds; predicted")
        fig.legend(loc="outside lower center", ncols=3)
    return fig


def plot_growth(df: pd.DataFrame) -> Figure:
    """How the time to a plan grows with one thing at a time: median and range over the problems.

    Columns: axis ("layers", "batch_size" or "workers"), value, way, solve_s. One panel per axis.
    """
    check_columns(df, ["axis", "value", "way", "solve_s"])
    axes_drawn = list(dict.fromkeys(df["axis"]))
    with use_style():
        fig, axes = panels(1, len(axes_drawn), 2.2, sharey=True)
        for ax, axis in zip(axes, axes_drawn, strict=True):
            shown = df[df["axis"] == axis]
            for way in WAYS:
                _draw_way(ax, shown[shown["way"] == way], "value", way, line="-")
            ax.set_xscale("log")
            values = sorted(shown["value"].unique())
            ax.set_xticks(values, [str(value) for value in values])
            ax.minorticks_off()
            ax.set_xlabel(AXES[axis])
        axes[0].set_yscale("log")
        axes[0].set_ylabel("time to the plan (s)")
        say_source(axes[-1], "measured")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def _draw_way(ax: Axes, rows: pd.DataFrame, x: str, way: str, line: str) -> None:
    """Median and range of ``solve_s`` at each x."""
    label, colour, marker = WAYS[way]
    times = rows.groupby(x)["solve_s"].agg(["median", "min", "max"])
    errors = [times["median"] - times["min"], times["max"] - times["median"]]
    ax.errorbar(times.index, times["median"], yerr=errors, fmt=marker + line, color=colour, label=label)
