"""What each step from the paper's plans to overlapped iterations brings."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hiertrain.figures.style import BLACK, MODEL_COLOURS, check_columns, panels, use_style

APART = 0.12  # of the distance between two steps: the lines of two rates


def plot_ablation(df: pd.DataFrame) -> Figure:
    """Speedup over the first step, and times the limit of any plan, step by step: a row per model, a line per rate.

    Columns: model, cloud_mbps, step, and speedup and over_limit, each _predicted and _observed (NaN: not executed);
    speedup_low and speedup_high, the ends of its error bar. Lines are predicted, points observed. At most six rates.
    """
    ratios = ("speedup", "over_limit")
    needed = [f"{ratio}_{kind}" for ratio in ratios for kind in ("predicted", "observed")]
    check_columns(df, ["model", "cloud_mbps", "step", *needed, "speedup_low", "speedup_high"])
    models, steps = list(dict.fromkeys(df["model"])), list(dict.fromkeys(df["step"]))
    colours = dict(zip(sorted(df["cloud_mbps"].unique()), MODEL_COLOURS, strict=False))
    with use_style():
        fig, axes = panels(len(models), 2, 1.1 + 0.95 * len(models))
        for place, ax in enumerate(axes):
            rows, ratio = df[df["model"] == models[place // 2]], ratios[place % 2]
            for index, (mbps, colour) in enumerate(colours.items()):
                of_rate = rows[rows["cloud_mbps"] == mbps].set_index("step").reindex(steps)
                aside = APART * (index - (len(colours) - 1) / 2)  # points that coincide stay visible
                _draw_steps(ax, of_rate, ratio, colour, aside)
            ax.axhline(1, color=BLACK, linewidth=0.6)
            ax.yaxis.set_major_locator(MaxNLocator(4))
        for ax, model in zip(axes[::2], models, strict=True):
            ax.set_ylabel(model)
        for ax, title in zip(axes, ("speedup over the paper's star", "times the limit"), strict=False):
            ax.set_title(title, loc="left")
        for ax in axes[-2:]:
            ax.set_xticks(range(len(steps)), steps, rotation=90)
        lines = [Line2D([], [], color=colour) for colour in colours.values()]
        shown = [Line2D([], [], color=BLACK), Line2D([], [], color=BLACK, marker="o", linestyle="")]
        names = [f"{mbps:g} Mbit/s" for mbps in colours]
        labels = [*names, "line: predicted", "point: real run"]
        fig.legend([*lines, *shown], labels, loc="outside lower center", ncols=3)
    return fig


def _draw_steps(ax: Axes, rows: pd.DataFrame, ratio: str, colour: str, aside: float) -> None:
    places, observed = np.arange(len(rows)) + aside, rows[f"{ratio}_observed"]
    ax.plot(places, rows[f"{ratio}_predicted"], color=colour)
    errors = [observed - rows["speedup_low"], rows["speedup_high"] - observed] if ratio == "speedup" else None
    ax.errorbar(places, observed, errors, fmt="o", color=colour, markersize=2.5)
