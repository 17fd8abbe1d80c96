"""What plans look like and gain as the network changes, and how they learn."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter, NullLocator

from hiertrain.figures.speedups import AXES
from hiertrain.figures.style import (
    BLACK,
    BLUE,
    FULL_WIDTH_IN,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILION,
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
RATES = ("cloud_mbps", "device_edge_mbps")
# Machines in quiet colours, what is split in strong ones.
KIND_NAMES = {
    "device": "one machine: the device",
    "edge": "one machine: the edge server",
    "cloud": "one machine: the cloud",
    "layers": "split the layers",
    "samples": "split the samples",
    "both": "split both: hybrid parallelism",
}
KIND_COLOURS = dict(zip(KIND_NAMES, ("#EFEFEF", "#D6D6D6", "#BDBDBD", PURPLE, BLUE, VERMILION), strict=True))
SPLIT = ("layers", "samples", "both")
PRIVACY = {False: "samples may be sent", True: "samples stay private"}
MAP_TITLE = "When does it pay to split a training among machines? Times as fast as the best single machine (predicted)"
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


def plot_map(df: pd.DataFrame, here: pd.DataFrame) -> Figure:
    """Which kind of plan wins over the rate to the cloud and the device-edge rate: a column of panels per model.

    Columns: model, batch_size, samples_stay (a row of panels each), cloud_mbps, device_edge_mbps, winner (of
    ``KIND_COLOURS``), gain_percent over the best single machine: the number in the cell, as times as fast, where
    something is split. ``here``: cells that are framed, by model, cloud_mbps and device_edge_mbps. Full width.
    """
    check_columns(df, ["model", "batch_size", "samples_stay", *RATES, "winner", "gain_percent"])
    models, stays = list(dict.fromkeys(df["model"])), list(dict.fromkeys(df["samples_stay"]))
    with use_style():
        fig, axes = plt.subplots(
            len(stays), len(models), figsize=(FULL_WIDTH_IN, 0.95 + 1.25 * len(stays)), squeeze=False,
            sharex=True, sharey=True,
        )  # fmt: skip
        for row, stay in zip(axes, stays, strict=True):
            for ax, model in zip(row, models, strict=True):
                cells = df[(df["model"] == model) & (df["samples_stay"] == stay)]
                _draw_map(ax, cells, here[here["model"] == model])
            row[0].set_ylabel(f"{PRIVACY[stay]}\n\n{AXES['device_edge_mbps']}", linespacing=0.9)
        for ax, model in zip(axes[0], models, strict=True):
            size = df.loc[df["model"] == model, "batch_size"].iloc[0]
            ax.set_title(f"{model}, {size} samples", loc="left")
        for ax in axes[-1]:
            ax.set_xlabel(AXES["cloud_mbps"], fontsize=6)
        shown = [Patch(color=KIND_COLOURS[kind]) for kind in KIND_NAMES]
        frame = Patch(facecolor="white", edgecolor=BLACK, linewidth=1.2)
        fig.legend([*shown, frame], [*KIND_NAMES.values(), "the testbed as it is"], loc="outside lower center", ncols=4)
        fig.suptitle(MAP_TITLE, x=0.01, ha="left", fontsize=7.5, fontweight="bold")
    return fig


def _draw_map(ax: Axes, cells: pd.DataFrame, here: pd.DataFrame) -> None:
    """A square for each pair of rates, which are logarithmic by their choice."""
    x, y = (sorted(cells[rate].unique()) for rate in RATES)
    for cell in cells.to_dict("records"):
        place = x.index(cell["cloud_mbps"]), y.index(cell["device_edge_mbps"])
        ax.add_patch(Rectangle(place, 1, 1, facecolor=KIND_COLOURS[cell["winner"]], edgecolor="white", linewidth=0.8))
        if cell["winner"] in SPLIT:
            ratio = 1 + cell["gain_percent"] / 100
            ax.text(place[0] + 0.5, place[1] + 0.5, f"{ratio:.{2 if ratio < 2 else 1}f}", color="white", ha="center",
                    va="center", fontsize=6)  # fmt: skip
    for cloud, edge in here[list(RATES)].itertuples(index=False):
        if cloud in x and edge in y:
            ax.add_patch(Rectangle((x.index(cloud), y.index(edge)), 1, 1, fill=False, edgecolor=BLACK, linewidth=1.4,
                                   zorder=3))  # fmt: skip
    for axis, rates in ((ax.xaxis, x), (ax.yaxis, y)):
        axis.set_ticks([place + 0.5 for place in range(len(rates))], [f"{rate:g}" for rate in rates])
    ax.set_xlim(0, len(x))
    ax.set_ylim(0, len(y))
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


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
