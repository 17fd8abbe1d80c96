"""What the paper claims, beside what was predicted and observed."""

from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from hiertrain.figures.speedups import STATED_SPEEDUP
from hiertrain.figures.style import BLACK, SOURCE_COLOURS, check_columns, panel, use_style

TICKS = [0.5, 1, 2, 3, 5, 10, 20, 50, 100]


def plot_claims(df: pd.DataFrame) -> Figure:
    """Speedups, one row each, against the one that the paper states.

    Columns: quantity, predicted, measured (NaN: there is none), low, high (ends of its error bar), and its kind.
    """
    check_columns(df, ["quantity", "predicted", "measured", "low", "high", "kind"])
    rows = df.reset_index(drop=True)
    with use_style():
        fig, ax = panel(0.9 + 0.3 * len(rows))
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
        ax.set_yticks(range(len(rows)), [fill(text, 22) for text in rows["quantity"]])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xscale("log")
        ax.set_xticks(TICKS, [f"{tick:g}x" for tick in TICKS])
        ends = [STATED_SPEEDUP, 1, *rows[["predicted", "measured", "low", "high"]].stack()]
        ax.set_xlim(min(ends) / 1.2, max(ends) * 1.2)
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("speedup of hiertrain")
        fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig
