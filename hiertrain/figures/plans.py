"""DataFrame -> Figure, one message each, one column (3.4 in) wide. Units stand in the column names.

Every figure says whether it shows something measured (real run), emulated (real run with slowed compute) or predicted
(cost model). The colours are seaborn's palette for colour-blind readers.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, cast, get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.typing import RcKeyType

from hiertrain import files
from hiertrain.paths import RESULTS
from hiertrain.program import RECEIVES, Kind
from hiertrain.records import run_folder
from hiertrain.values import InputError

Source = Literal["predicted", "emulated", "measured"]
SOURCES: tuple[Source, ...] = get_args(Source)

WIDTH_IN = 3.4
BLACK = "#000000"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, _, _, GREY, YELLOW, SKY = sns.color_palette("colorblind").as_hex()
SOURCE_COLOURS = {"predicted": ORANGE, "emulated": SKY, "measured": BLUE}
ACTION_COLOURS = {
    Kind.FORWARD: BLUE,
    Kind.BACKWARD: VERMILION,
    Kind.UPDATE: GREEN,
    Kind.SEND_SAMPLES: GREY,
    Kind.SEND_ACTIVATIONS: SKY,
    Kind.SEND_ACTIVATION_GRADIENTS: ORANGE,
    Kind.SEND_GRADIENTS: PURPLE,
    Kind.SEND_WEIGHTS: YELLOW,
    **dict.fromkeys(RECEIVES, "#E6E6E6"),  # the time that a receive lasts is time spent waiting
}
MODEL_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
# A policy has the same colour and dashes in every figure; the improved variant is the solid line of its colour.
POLICY_STYLES = {
    "all-device": (GREY, ":"),
    "all-edge": (GREY, "--"),
    "all-cloud": (GREY, "-"),
    "jointdnn": (BLUE, "--"),
    "jointdnn+": (BLUE, "-"),
    "jalad": (GREEN, "--"),
    "jalad+": (GREEN, "-"),
    "data-parallel": (SKY, "-"),
    "layer-parallel": (PURPLE, "-"),
    "hiertrain": (VERMILION, "--"),
    "hiertrain+": (VERMILION, "-"),
}

STYLE: dict[RcKeyType, object] = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # part of matplotlib: the same everywhere
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": BLACK,
    "xtick.bottom": True,
    "ytick.left": True,
    "grid.linewidth": 0.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "legend.frameon": False,
    "errorbar.capsize": 1.5,
    "pdf.fonttype": 42,  # whole TrueType fonts, which publishers accept and text search finds
}


def use_style() -> AbstractContextManager[None]:
    """The style sheet over seaborn's white grid, as a context: ``with use_style():``."""
    return plt.rc_context({**cast("dict[RcKeyType, object]", sns.axes_style("whitegrid")), **STYLE})


def save_figure(fig: Figure, name: str, run: str, data: pd.DataFrame, root: Path = RESULTS) -> None:
    """Write results/<run>/figures/<name>.png, .pdf and .csv, the CSV holding exactly what is drawn.

    The same figure gives the same bytes. Raises InputError when the run's name is no folder name.
    """
    folder = run_folder(run, root) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    with use_style():
        fig.savefig(folder / f"{name}.png", metadata={"Software": None})
        fig.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    files.write_text(folder / f"{name}.csv", data.to_csv(index=False, lineterminator="\n"))


def plot_layers(df: pd.DataFrame) -> Figure:
    """Where a model is cheap to cut, and where its parameters sit. Sizes are exact, so no source is named.

    Columns: layer, output_kib_per_sample, parameter_kib, sample_kib (one value). Sizes of 0 are not drawn.
    """
    _check(df, ["layer", "output_kib_per_sample", "parameter_kib", "sample_kib"])
    with use_style():
        fig, ax = _figure(2.2)
        x = np.arange(len(df))
        ax.bar(x, df["parameter_kib"], color=ORANGE, width=0.7, label="parameters")
        ax.plot(x, df["output_kib_per_sample"].where(df["output_kib_per_sample"] > 0), "o-", color=BLUE,
                label="output per sample")  # fmt: skip
        ax.axhline(df["sample_kib"].iloc[0], color=BLACK, linestyle="--", linewidth=0.8, label="raw sample")
        ax.set_yscale("log")
        _layer_axis(ax, df["layer"])
        ax.set_ylabel("size (KiB)")
        _say_source(ax, "exact sizes")
        fig.legend(loc="outside lower center", ncols=3)
    return fig


def plot_layer_times(df: pd.DataFrame, source: Source) -> Figure:
    """Where the time of one mini-batch goes, one panel per worker.

    Columns: worker, layer, step ("forward" or "backward"), batch_ms, samples.
    """
    _check(df, ["worker", "layer", "step", "batch_ms", "samples"])
    workers = df["worker"].unique()
    with use_style():
        fig, axes = _figures(len(workers), 1, 0.7 + 1.0 * len(workers))
        for ax, worker in zip(axes, workers, strict=True):
            rows = df[df["worker"] == worker]
            layers = list(dict.fromkeys(rows["layer"]))
            for step, shift, colour in [("forward", -0.2, BLUE), ("backward", 0.2, VERMILION)]:
                times = rows[rows["step"] == step].set_index("layer")["batch_ms"].reindex(layers)
                ax.bar(np.arange(len(layers)) + shift, times, width=0.4, color=colour, label=step)
            ax.set_title(f"{worker}, {rows['samples'].iloc[0]} samples", loc="left")
            ax.set_ylabel("time (ms)")
            _layer_axis(ax, layers)
            ax.tick_params(labelbottom=ax is axes[-1])
        _say_source(axes[0], source)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def plot_fit(df: pd.DataFrame, source: Source) -> Figure:
    """Whether a fixed part plus a part per sample describes the times, one panel per layer.

    Columns: layer, samples, median_ms, spread_ms (length of the error bar), fitted_ms.
    """
    _check(df, ["layer", "samples", "median_ms", "spread_ms", "fitted_ms"])
    layers = df["layer"].unique()
    columns = min(2, len(layers))
    rows = math.ceil(len(layers) / columns)
    with use_style():
        fig, axes = _figures(rows, columns, 0.6 + 1.1 * rows)
        for ax, layer in zip(axes, layers, strict=False):
            points = df[df["layer"] == layer].sort_values("samples")
            ax.errorbar(points["samples"], points["median_ms"], yerr=points["spread_ms"] / 2, fmt="o", color=BLUE,
                        label=source)  # fmt: skip
            ax.plot(points["samples"], points["fitted_ms"], color=ORANGE, label="fitted: fixed + per sample")
            ax.set_title(layer, loc="left")
            ax.set_ylim(bottom=0)
        for ax in axes[len(layers) :]:
            ax.set_visible(False)
        for index, ax in enumerate(axes[: len(layers)]):
            if index % columns == 0:
                ax.set_ylabel("time (ms)")
            if index + columns >= len(layers):  # nothing below
                ax.set_xlabel("samples")
                ax.tick_params(labelbottom=True)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def plot_timeline(df: pd.DataFrame) -> Figure:
    """What each worker and its network do when: one panel per source, one row per worker and lane.

    Columns: worker, kind (of the action), start_ms, end_ms, lane ("compute" or "network"), source.
    """
    _check(df, ["worker", "kind", "start_ms", "end_ms", "lane", "source"])
    sources = [source for source in SOURCES if source in set(df["source"])]
    lanes = [
        (worker, lane)
        for worker in df["worker"].unique()
        for lane in ("compute", "network")
        if ((df["worker"] == worker) & (df["lane"] == lane)).any()
    ]
    with use_style():
        fig, axes = _figures(len(sources), 1, 0.9 + len(sources) * (0.35 + 0.17 * len(lanes)))
        for ax, source in zip(axes, sources, strict=True):
            spans = df[df["source"] == source]
            _draw_spans(ax, spans, lanes)
            ax.set_title(f"{source}: {spans['end_ms'].max():.4g} ms", loc="left")
            ax.set_xlim(0, df["end_ms"].max())
            ax.tick_params(labelbottom=ax is axes[-1])
        axes[-1].set_xlabel("time in the iteration (ms)")
        drawn = {("waiting" if kind in RECEIVES else kind): ACTION_COLOURS[Kind(kind)] for kind in df["kind"].unique()}
        fig.legend([Patch(color=colour) for colour in drawn.values()], list(drawn), loc="outside lower center", ncols=3)
    return fig


def plot_times(df: pd.DataFrame) -> Figure:
    """How long one iteration takes under each policy, fastest first.

    Columns: policy, iteration_ms, low_ms, high_ms (ends of the error bar, NaN for none), kind (the source).
    """
    _check(df, ["policy", "iteration_ms", "low_ms", "high_ms", "kind"], source="kind")
    sources = [source for source in SOURCES if source in set(df["kind"])]
    policies = list(df.groupby("policy")["iteration_ms"].min().sort_values().index)
    height = 0.8 / len(sources)
    with use_style():
        fig, ax = _figure(0.8 + 0.22 * len(policies) * max(1.0, 0.6 * len(sources)))
        for index, source in enumerate(sources):
            rows = df[df["kind"] == source].set_index("policy").reindex(policies)
            y = np.arange(len(policies)) + (index - (len(sources) - 1) / 2) * height
            errors = [rows["iteration_ms"] - rows["low_ms"], rows["high_ms"] - rows["iteration_ms"]]
            ax.barh(y, rows["iteration_ms"], height, xerr=errors, color=SOURCE_COLOURS[source], label=source,
                    error_kw={"elinewidth": 0.8})  # fmt: skip
        ax.set_yticks(np.arange(len(policies)), policies)
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("time per iteration (ms)")
        fig.legend(loc="outside lower center", ncols=3)
    return fig


def plot_agreement(df: pd.DataFrame) -> Figure:
    """Predicted against real times per iteration: on the diagonal the prediction is right.

    Columns: model, uplink_mbps, predicted_ms, observed_ms, kind (of the observed times, one value).
    """
    _check(df, ["model", "uplink_mbps", "predicted_ms", "observed_ms", "kind"], source="kind")
    models, uplinks = df["model"].unique(), sorted(df["uplink_mbps"].unique())
    with use_style():
        fig, ax = _figure(2.9)
        ends = [
            df[["predicted_ms", "observed_ms"]].min().min() / 1.3,
            df[["predicted_ms", "observed_ms"]].max().max() * 1.3,
        ]
        ax.plot(ends, ends, color=BLACK, linewidth=0.6)
        ax.fill_between(ends, np.multiply(ends, 0.9), np.multiply(ends, 1.1), color=GREY, alpha=0.25, linewidth=0)
        colours, markers = dict(zip(models, MODEL_COLOURS, strict=False)), dict(zip(uplinks, "ov^sDP", strict=False))
        for (model, uplink), rows in df.groupby(["model", "uplink_mbps"]):
            ax.plot(rows["observed_ms"], rows["predicted_ms"], markers[uplink], color=colours[model], markersize=3.5,
                    markeredgewidth=0.6, fillstyle="none")  # fmt: skip
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(*ends)
        ax.set_ylim(*ends)
        ax.set_xlabel(f"{df['kind'].iloc[0]} time per iteration (ms)")
        ax.set_ylabel("predicted time per iteration (ms)")
        ax.text(0.03, 0.95, "band: within 10%", transform=ax.transAxes, va="top")
        shapes = [Line2D([], [], color=colour) for colour in colours.values()]
        shapes += [Line2D([], [], color=BLACK, marker=m, linestyle="", fillstyle="none") for m in markers.values()]
        labels = [*colours, *(f"{uplink:g} Mbit/s" for uplink in markers)]
        fig.legend(shapes, labels, loc="outside lower center", ncols=3)
    return fig


def plot_errors(df: pd.DataFrame, by: str, source: Source, limit: float | None = None) -> Figure:
    """How far predictions are off, one row of points per value of ``by``, with their median and quartiles.

    Columns: ``by``, error_percent. ``limit``: a band of that many percent either way is shaded.
    """
    _check(df, [by, "error_percent"])
    rows = list(dict.fromkeys(df[by]))
    with use_style():
        fig, ax = _figure(0.7 + 0.2 * len(rows))
        if limit is not None:
            ax.axvspan(-limit, limit, color=GREY, alpha=0.25, linewidth=0)
        ax.axvline(0, color=BLACK, linewidth=0.6)
        for y, row in enumerate(rows):
            errors = df.loc[df[by] == row, "error_percent"]
            low, median, high = np.quantile(errors, [0.25, 0.5, 0.75])
            ax.plot(errors, np.full(len(errors), y), "o", color=BLUE, fillstyle="none", markeredgewidth=0.5)
            ax.errorbar(median, y, xerr=[[median - low], [high - median]], fmt="|", color=VERMILION, markersize=9)
        ax.set_yticks(range(len(rows)), rows)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(f"predicted minus {source} (%)")
    return fig


def plot_ratios(df: pd.DataFrame, source: Source) -> Figure:
    """How many times as long as each rival the runtime takes: 1 is equal, left of it is faster.

    Columns: case (model and batch size), rival, ratio, low, high (ends of the error bar). One colour per case.
    """
    _check(df, ["case", "rival", "ratio", "low", "high"])
    rivals, cases = list(dict.fromkeys(df["rival"])), list(dict.fromkeys(df["case"]))
    with use_style():
        fig, ax = _figure(0.8 + 0.3 * len(rivals))
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
        _say_source(ax, source)
        fig.legend(loc="outside lower center", ncols=2)
    return fig


def plot_convergence(df: pd.DataFrame, source: Source) -> Figure:
    """Policies learn the same per iteration, and differ per second.

    Columns: policy, iteration, time_s, loss. Raises InputError for a policy without a style.
    """
    _check(df, ["policy", "iteration", "time_s", "loss"])
    with use_style():
        fig, axes = _figures(1, 2, 2.0, sharey=True)
        for policy, rows in df.groupby("policy", sort=False):
            colour, dashes = _policy_style(str(policy))
            for ax, column in zip(axes, ["iteration", "time_s"], strict=True):
                ordered = rows.sort_values(column)
                ax.plot(ordered[column], ordered["loss"], linestyle=dashes, color=colour, label=policy)
        axes[0].set_xlabel("iteration")
        axes[1].set_xlabel("time (s)")
        axes[0].set_ylabel("training loss")
        _say_source(axes[1], source)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def _figure(height_in: float) -> tuple[Figure, Axes]:
    fig, axes = _figures(1, 1, height_in)
    return fig, axes[0]


def _figures(rows: int, columns: int, height_in: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A grid of panels that share their x axis within a column, row by row."""
    fig, axes = plt.subplots(
        rows, columns, figsize=(WIDTH_IN, height_in), squeeze=False, sharex="col", sharey="row" if sharey else False
    )
    return fig, list(axes.flat)


def _check(df: pd.DataFrame, columns: Sequence[str], source: str = "source") -> None:
    """Raise InputError when a column is missing, there is nothing to draw, or a row's source is none of ours."""
    missing = [column for column in columns if column not in df.columns]
    if missing:
        raise InputError(f"figure: column {missing[0]!r} is missing; there are {', '.join(map(str, df.columns))}")
    if df.empty:
        raise InputError("figure: the table has no rows; at least one is needed")
    if source in columns:
        for value in df[source].unique():
            if value not in SOURCES:
                raise InputError(f"figure: {source} {value!r}: must be one of {', '.join(SOURCES)}")


def _say_source(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="right", style="italic")


def _layer_axis(ax: Axes, layers: Sequence[str] | pd.Series) -> None:
    """Layer names under their positions, upright so that dozens fit."""
    ax.set_xticks(np.arange(len(layers)), list(layers), rotation=90, fontsize=6 if len(layers) <= 24 else 4.5)
    ax.grid(visible=False, axis="x")
    ax.set_xlim(-0.7, len(layers) - 0.3)


def _draw_spans(ax: Axes, spans: pd.DataFrame, lanes: Sequence[tuple[str, str]]) -> None:
    """One horizontal bar per span; waiting is drawn first so that it hides nothing."""
    rows: Mapping[tuple[str, str], int] = {lane: row for row, lane in enumerate(lanes)}
    waiting = spans["kind"].isin(RECEIVES)
    for part in (spans[waiting], spans[~waiting]):
        ax.barh(
            [rows[lane] for lane in zip(part["worker"], part["lane"], strict=True)],
            part["end_ms"] - part["start_ms"],
            left=part["start_ms"],
            height=0.8,
            color=[ACTION_COLOURS[Kind(kind)] for kind in part["kind"]],
            edgecolor="white",
            linewidth=0.2,
        )
    ax.set_yticks(range(len(lanes)), [f"{worker} {lane}" for worker, lane in lanes])
    ax.set_ylim(len(lanes) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _policy_style(policy: str) -> tuple[str, str]:
    if policy not in POLICY_STYLES:
        raise InputError(f"figure: policy {policy!r} has no style; there are {', '.join(POLICY_STYLES)}")
    return POLICY_STYLES[policy]
