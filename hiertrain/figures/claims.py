"""What the paper claims, beside what was predicted and observed, and the colours of verdicts."""

from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from hiertrain.figures.speedups import STATED_SPEEDUP
from hiertrain.figures.style import BLACK, SOURCE_COLOURS, check_columns, panel, use_style

TICKS = [0.5, 1, 2, 3, 5, 10, 20, 50, 100]
VERDICT_COLOURS = {"holds": "#d3efe3", "fails": "#f9d5cc", "open": "#fbedc0", "not in this grid": "#e6e6e6"}


def plot_claims(df: pd.DataFrame) -> Figure:
    """Speedups, one row each on the colour of its verdict, against the one that the paper states.

    Columns: quantity, predicted, measured (NaN: there is none), low, high (ends of its error bar), its kind, the
    verdict, and reference: the same in the whole grid, NaN where this is it.
    """
    check_columns(df, ["quantity", "predicted", "measured", "low", "high", "reference", "kind", "verdict"])
    rows = df.reset_index(drop=True)
    with use_style():
        fig, ax = panel(1.0 + 0.3 * len(rows))
        for row, verdict in enumerate(rows["verdict"]):
            ax.axhspan(row - 0.45, row + 0.45, color=VERDICT_COLOURS[verdict], zorder=0)
        line = ax.axvline(
            STATED_SPEEDUP, color=BLACK, linewidth=0.6, linestyle=":", label=f"the paper: up to {STATED_SPEEDUP}x"
        )
        handles = [line, ax.scatter(rows["predicted"], rows.index - 0.14, marker="D", s=8, label="predicted")]
        handles[1].set_color(SOURCE_COLOURS["predicted"])
        for kind, own in rows.dropna(subset="measured").groupby("kind"):
            errors = [own["measured"] - own["low"], own["high"] - own["measured"]]
            colour = SOURCE_COLOURS[str(kind)]
            handles.append(
                ax.errorbar(own["measured"], own.index + 0.14, xerr=errors, fmt="o", color=colour, label=str(kind))
            )
        if rows["reference"].notna().any():
            handles.append(ax.scatter(rows["reference"], rows.index, marker="|", s=80, color=BLACK, label="whole grid"))
        handles += [Patch(color=VERDICT_COLOURS[verdict], label=verdict) for verdict in rows["verdict"].unique()]
        ax.set_yticks(range(len(rows)), [fill(text, 22) for text in rows["quantity"]])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xscale("log")
        ax.set_xticks(TICKS, [f"{tick:g}x" for tick in TICKS])
        ends = [STATED_SPEEDUP, 1, *rows[["predicted", "measured", "low", "high", "reference"]].stack()]
        ax.set_xlim(min(ends) / 1.2, max(ends) * 1.2)
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("speedup of hiertrain")
        fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig
