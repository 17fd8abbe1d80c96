"""Comparisons of policies and of runtimes."""

import pandas as pd
from matplotlib.figure import Figure

from hiertrain.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
    Source,
    check_columns,
    panel,
    panels,
    policy_style,
    say_source,
    use_style,
)


def plot_ratios(df: pd.DataFrame, source: Source) -> Figure:
    """How many times as long as each rival the runtime takes: 1 is equal, left of it is faster.

    Columns: case (model and batch size), rival, ratio, low, high (ends of the error bar). One colour per case.
    """
    check_columns(df, ["case", "rival", "ratio", "low", "high"])
    rivals, cases = list(dict.fromkeys(df["rival"])), list(dict.fromkeys(df["case"]))
    with use_style():
        fig, ax = panel(0.8 + 0.3 * len(rivals))
        for index, (case, colour) in enumerate(zip(cases, [BLUE, ORANGE, GREEN, VERMILION, PURPLE], strict=False)):
            rows = df[df["case"] == case]
            y = [rivals.index(rival) + 0.18 * (index - (len(cases) - 1) / 2) for rival in rows["rival"]]
            errors = [rows["ratio"] - rows["low"], rows["high"] - rows["ratio"]]
            ax.errorbar(rows["ratio"], y, xerr=errors, fmt="o", color=colour, label=case)
        ax.axvline(1.0, color=BLACK, linewidth=0.8)
        ax.set_yticks(range(len(rivals)), [f"vs {rival}" for rival in rivals])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("time per iteration, times the rival's")
        say_source(ax, source)
        fig.legend(loc="outside lower center", ncols=2)
    return fig


def plot_convergence(df: pd.DataFrame, source: Source) -> Figure:
    """Policies learn the same per iteration, and differ per second.

    Columns: policy, iteration, time_s, loss. Raises InputError for a policy without a style.
    """
    check_columns(df, ["policy", "iteration", "time_s", "loss"])
    with use_style():
        fig, axes = panels(1, 2, 2.0, sharey=True)
        for policy, rows in df.groupby("policy", sort=False):
            colour, dashes = policy_style(str(policy))
            for ax, column in zip(axes, ["iteration", "time_s"], strict=True):
                ordered = rows.sort_values(column)
                ax.plot(ordered[column], ordered["loss"], linestyle=dashes, color=colour, label=policy)
        axes[0].set_xlabel("iteration")
        axes[1].set_xlabel("time (s)")
        axes[0].set_ylabel("training loss")
        say_source(axes[1], source)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig
