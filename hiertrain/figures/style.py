"""One style for all figures: colours, sizes, how a figure is saved and shown, and the drawing that they share."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Literal, cast, get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.display import Image, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType
from PIL import UnidentifiedImageError
from PIL.Image import open as open_image

from hiertrain import files
from hiertrain.paths import RESULTS
from hiertrain.program.actions import Op, Role
from hiertrain.results.records import run_folder
from hiertrain.values import InputError

Source = Literal["predicted", "emulated", "measured"]
SOURCES: tuple[Source, ...] = get_args(Source)
CAPTION_KINDS = (*SOURCES, "exact")

WIDTH_IN = 3.4
FULL_WIDTH_IN = 2 * WIDTH_IN  # of both columns, and of a README
SHOWN_PX = 640  # wide, in a notebook: letters of 7 points are then as large as the text around them
BLACK = "#000000"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, _, _, GREY, YELLOW, SKY = sns.color_palette("colorblind").as_hex()
SOURCE_COLOURS = {"predicted": ORANGE, "emulated": SKY, "measured": BLUE}
ACTION_COLOURS = {  # by the label of the action
    Op.FORWARD: BLUE,
    Op.BACKWARD: VERMILION,
    Op.UPDATE: GREEN,
    f"{Op.SEND} {Role.SAMPLES}": GREY,
    f"{Op.SEND} {Role.ACTIVATIONS}": SKY,
    f"{Op.SEND} {Role.ACTIVATION_GRADIENTS}": ORANGE,
    f"{Op.SEND} {Role.GRADIENTS}": PURPLE,
    f"{Op.SEND} {Role.WEIGHTS}": YELLOW,
    # The time that a receive lasts is time spent waiting.
    **{f"{Op.RECEIVE} {role}": "#E6E6E6" for role in Role},
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
    "hatch.linewidth": 0.4,
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


def save_figure(fig: Figure, name: str, run: str, data: pd.DataFrame, caption: str, root: Path = RESULTS) -> None:
    """Write results/<run>/figures/<name>.png, .pdf and .csv, the CSV holding exactly what is drawn; show and close it.

    The caption travels inside the PNG (its text "Description") and the PDF (its subject). The same figure gives the
    same bytes. Raises InputError when the run's name is no folder name, or the caption does not say its kind.
    """
    if not any(kind in caption.lower() for kind in CAPTION_KINDS):
        raise InputError(f"figure {name}: caption {caption!r}: must say one of {', '.join(CAPTION_KINDS)}")
    folder = run_folder(run, root) / "figures"
    with use_style():
        for ending, metadata in (
            ("png", {"Software": None, "Description": caption}),
            ("pdf", {"CreationDate": None, "Subject": caption}),
        ):
            drawn = BytesIO()
            fig.savefig(drawn, format=ending, metadata=metadata)
            files.write_bytes(folder / f"{name}.{ending}", drawn.getvalue())
    files.write_text(folder / f"{name}.csv", data.to_csv(index=False, lineterminator="\n"))
    _show(folder / f"{name}.png", caption)
    plt.close(fig)


def _show(png: Path, caption: str) -> None:
    """In a notebook, the very file that was written, and its caption below it; elsewhere nothing.

    Matplotlib's inline backend would show only figures that are made while it is interactive, which ``use_style``
    undoes: the first one of a notebook.
    """
    if get_ipython() is None:
        return
    display(Image(png.read_bytes(), format="png", width=SHOWN_PX, alt=caption))
    display(Markdown(re.sub(r"([\\`*_{}\[\]<>#$~|])", r"\\\1", caption)))


def load_caption(path: Path) -> str:
    """What ``save_figure`` wrote into a PNG. Raises InputError for another file, and for none."""
    try:
        with open_image(path) as image:
            caption = image.info.get("Description")
    except FileNotFoundError:
        raise InputError(f"{path}: No such file") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image") from None
    if caption is None:
        raise InputError(f"{path}: has no caption; save_figure writes one")
    return caption


def panel(height_in: float) -> tuple[Figure, Axes]:
    """A figure of one column's width with a single panel."""
    fig, axes = panels(1, 1, height_in)
    return fig, axes[0]


def panels(rows: int, columns: int, height_in: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A grid of panels that share their x axis within a column, row by row."""
    fig, axes = plt.subplots(
        rows, columns, figsize=(WIDTH_IN, height_in), squeeze=False, sharex="col", sharey="row" if sharey else False
    )
    return fig, list(axes.flat)


def check_columns(df: pd.DataFrame, columns: Sequence[str], source: str = "source") -> None:
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


def say_source(ax: Axes, text: str) -> None:
    """Write where the numbers come from above a panel."""
    ax.set_title(text, loc="right", style="italic")


def layer_axis(ax: Axes, layers: Sequence[str] | pd.Series) -> None:
    """Layer names under their positions, upright so that dozens fit."""
    ax.set_xticks(np.arange(len(layers)), list(layers), rotation=90, fontsize=6 if len(layers) <= 24 else 4.5)
    ax.grid(visible=False, axis="x")
    ax.set_xlim(-0.7, len(layers) - 0.3)


def policy_style(policy: str) -> tuple[str, str]:
    """Colour and dashes of a policy. Raises InputError for a policy without a style."""
    if policy not in POLICY_STYLES:
        raise InputError(f"figure: policy {policy!r} has no style; there are {', '.join(POLICY_STYLES)}")
    return POLICY_STYLES[policy]
