"""What stage 1 measures: the layers of a model, their times, and how well a line describes these."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hiertrain.figures.style import (
    BLACK,
    BLUE,
    ORANGE,
    VERMILION,
    Source,
    check_columns,
    layer_axis,
    panel,
    panels,
    say_source,
    use_style,
)


def plot_layers(df: pd.DataFrame) -> Figure:
    """Where a model is cheap to cut, and where its parameters sit. Sizes are exact, so no source is named.

    Columns: layer, output_kib_per_sample, parameter_kib, sample_kib (one value). Sizes of 0 are not drawn.
    """
    check_columns(df, ["layer", "output_kib_per_sample", "parameter_kib", "sample_kib"])
    with use_style():
        fig, ax = panel(2.2)
        x = np.arange(len(df))
        ax.bar(x, df["parameter_kib"], color=ORANGE, width=0.7, label="parameters")
        ax.plot(x, df["output_kib_per_sample"].where(df["output_kib_per_sample"] > 0), "o-", color=BLUE,
                label="output per sample")  # fmt: skip
        ax.axhline(df["sample_kib"].iloc[0], color=BLACK, linestyle="--", linewidth=0.8, label="raw sample")
        ax.set_yscale("log")
        layer_axis(ax, df["layer"])
        ax.set_ylabel("size (KiB)")
        say_source(ax, "exact sizes")
        fig.legend(loc="outside lower center", ncols=3)
    return fig


def plot_layer_times(df: pd.DataFrame, source: Source) -> Figure:
    """Where the time of one mini-batch goes, one panel per worker.

    Columns: worker, layer, step ("forward" or "backward"), batch_ms, samples.
    """
    check_columns(df, ["worker", "layer", "step", "batch_ms", "samples"])
    workers = df["worker"].unique()
    with use_style():
        fig, axes = panels(len(workers), 1, 0.7 + 1.0 * len(workers))
        for ax, worker in zip(axes, workers, strict=True):
            rows = df[df["worker"] == worker]
            layers = list(dict.fromkeys(rows["layer"]))
            for step, shift, colour in [("forward", -0.2, BLUE), ("backward", 0.2, VERMILION)]:
                times = rows[rows["step"] == step].set_index("layer")["batch_ms"].reindex(layers)
                ax.bar(np.arange(len(layers)) + shift, times, width=0.4, color=colour, label=step)
            ax.set_title(f"{worker}, {rows['samples'].iloc[0]} samples", loc="left")
            ax.set_ylabel("time (ms)")
            layer_axis(ax, layers)
            ax.tick_params(labelbottom=ax is axes[-1])
        say_source(axes[0], source)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def plot_fit(df: pd.DataFrame, source: Source) -> Figure:
    """Whether the costs follow the measured times, one panel per layer.

    Columns: layer, samples, median_ms, spread_ms (length of the error bar), fitted_ms.
    """
    check_columns(df, ["layer", "samples", "median_ms", "spread_ms", "fitted_ms"])
    layers = df["layer"].unique()
    columns = min(2, len(layers))
    rows = math.ceil(len(layers) / columns)
    with use_style():
        fig, axes = panels(rows, columns, 0.6 + 1.1 * rows)
        for ax, layer in zip(axes, layers, strict=False):
            points = df[df["layer"] == layer].sort_values("samples")
            ax.errorbar(points["samples"], points["median_ms"], yerr=points["spread_ms"] / 2, fmt="o", color=BLUE,
                        label=source)  # fmt: skip
            ax.plot(points["samples"], points["fitted_ms"], color=ORANGE, label="cost")
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
