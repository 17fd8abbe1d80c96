"""Plans: when each worker does what, how long an iteration takes, and how far predictions are off."""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from hiertrain.figures.style import (
    ACTION_COLOURS,
    BLACK,
    FULL_WIDTH_IN,
    GREY,
    MODEL_COLOURS,
    SOURCE_COLOURS,
    SOURCES,
    Source,
    check_columns,
    panel,
    panels,
    say_source,
    use_style,
)
from hiertrain.program.actions import Op
from hiertrain.values import InputError

TITLE_CHARACTERS = 48  # that fit above a panel
BAR = 0.8  # height of a row of a timeline that is filled
LANES = {"compute": "computes", "network": "sends"}
SPAN_TIMES = ("start_ms", "end_ms", "period_ms")
HATCH = "//////"  # what is sent for a later iteration


def plot_timeline(df: pd.DataFrame, by: str = "source") -> Figure:
    """What each worker and its network do when: one panel per value of ``by``, one row per worker and lane.

    Columns: iteration (from 0, which starts at 0 ms; below 0 for what reaches in from earlier ones), worker, kind (of
    the action), peer (NaN for none), ahead (sent for an iteration so many later), start_ms, end_ms, period_ms (of the
    iteration), lane ("compute" or "network"), source, ``by``. Messages to several workers share the height of a row.
    """
    columns = ["iteration", "worker", "kind", "peer", "ahead", "start_ms", "end_ms", "period_ms", "lane", "source"]
    check_columns(df, [*columns, by])
    titles = list(dict.fromkeys(df[by]))
    lanes = [
        (worker, lane)
        for worker in df["worker"].unique()
        for lane in ("compute", "network")
        if ((df["worker"] == worker) & (df["lane"] == lane)).any()
    ]
    ends_ms = {title: _ends_ms(df[df[by] == title]) for title in titles}
    with use_style():
        fig, axes = panels(len(titles), 1, 0.9 + len(titles) * (0.35 + 0.17 * len(lanes)))
        for ax, title in zip(axes, titles, strict=True):
            spans, (*borders_ms, last_ms) = df[df[by] == title], ends_ms[title]
            _draw_spans(ax, spans[spans["start_ms"] < last_ms], lanes, last_ms)
            for border_ms in borders_ms and [*borders_ms, last_ms]:
                ax.axvline(border_ms, color=BLACK, linewidth=0.6)
            source = "" if by == "source" else f" {spans['source'].iloc[0]}"
            time_ms = last_ms / len(ends_ms[title])
            ax.set_title(fill(f"{title}:{source} {time_ms:.4g} ms", TITLE_CHARACTERS), loc="left")
            ax.set_xlim(0, max(own_ms[-1] for own_ms in ends_ms.values()))
            ax.tick_params(labelbottom=ax is axes[-1])
        axes[-1].set_xlabel("time (ms)")
        shown = _legend(df)
        fig.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=3, handlelength=1.2)
    return fig


def plot_overlap(df: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """What overlapping brings: the same time axis under policies that take different times, one panel each.

    Columns: as ``plot_timeline`` has them, and policy; ``titles``: of all policies. One of them must overlap; its
    time is shown, and the iteration of one that does not is repeated. Waiting stays white. Full width.
    """
    check_columns(df, ["iteration", "worker", "kind", "peer", "ahead", *SPAN_TIMES, "lane", "source", "policy"])
    if set(df["policy"]) != set(titles):
        raise InputError(f"figure: policies {', '.join(df['policy'].unique())}; titles are of {', '.join(titles)}")
    workers = list(df["worker"].unique())
    busy = df[~df["kind"].str.startswith(Op.RECEIVE)]
    seen = set(busy[["worker", "lane"]].itertuples(index=False, name=None))
    lanes = [(worker, lane) for worker in workers for lane in LANES if (worker, lane) in seen]
    last_ms = max(_ends_ms(rows)[-1] for _, rows in df.groupby("policy") if rows["iteration"].max() > 0)
    with use_style():
        fig, axes = plt.subplots(
            len(titles), 1, figsize=(FULL_WIDTH_IN, 0.75 + len(titles) * (0.4 + 0.17 * len(lanes))), sharex=True,
            squeeze=False,
        )  # fmt: skip
        for ax, (policy, title) in zip(axes.flat, titles.items(), strict=True):
            spans = _until(busy[busy["policy"] == policy], last_ms)
            _draw_iterations(ax, _ends_ms(spans), last_ms)
            _draw_spans(ax, spans[spans["start_ms"] < last_ms], lanes, last_ms)
            ax.set_yticks(range(len(lanes)), [f"{worker} {LANES[lane]}" for worker, lane in lanes])
            period_ms = spans.loc[spans["iteration"] >= 0, "period_ms"].median()
            say_source(ax, spans["source"].iloc[0])
            ax.set_title(f"{title}: {period_ms:.0f} ms per iteration", loc="left", fontweight="bold", pad=12)
            ax.set_xlim(0, last_ms)
        axes.flat[-1].set_xlabel("time (ms)")
        shown = _legend(busy)
        shown.pop("end of iteration", None)
        fig.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=5, handlelength=1.2)
    return fig


def _until(spans: pd.DataFrame, last_ms: float) -> pd.DataFrame:
    """The spans; where they are of a single iteration, it is repeated for so long."""
    if spans["iteration"].max() > 0:
        return spans
    period_ms = spans["period_ms"].iloc[0]
    times = int(np.ceil(last_ms / period_ms))
    shifts = [spans[["start_ms", "end_ms"]] + index * period_ms for index in range(times)]
    return pd.concat([spans.assign(iteration=index, **shifted) for index, shifted in enumerate(shifts)])


def _draw_iterations(ax: Axes, ends_ms: Sequence[float], last_ms: float) -> None:
    """Every other iteration on a grey ground, and which one it is."""
    for index, (start_ms, end_ms) in enumerate(pairwise([0.0, *ends_ms])):
        shown_ms = min(end_ms, last_ms)
        if index % 2 == 0:
            ax.axvspan(start_ms, shown_ms, color=GREY, alpha=0.15, linewidth=0)
        middle = (start_ms + shown_ms) / 2, 1.0
        ax.annotate(f"iteration {index + 1}", middle, (0, 2), xycoords=("data", "axes fraction"),
                    textcoords="offset points", ha="center", va="bottom", fontsize=6)  # fmt: skip


def plot_times(df: pd.DataFrame) -> Figure:
    """How long one iteration takes under each policy, fastest first.

    Columns: policy, iteration_ms, low_ms, high_ms (ends of the error bar, NaN for none), kind (the source).
    """
    check_columns(df, ["policy", "iteration_ms", "low_ms", "high_ms", "kind"], source="kind")
    sources = [source for source in SOURCES if source in set(df["kind"])]
    policies = list(df.groupby("policy")["iteration_ms"].min().sort_values().index)
    height = 0.8 / len(sources)
    with use_style():
        fig, ax = panel(0.8 + 0.22 * len(policies) * max(1.0, 0.6 * len(sources)))
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

    Columns: execution, model, uplink_mbps, predicted_ms, observed_ms, kind (of the observed times, one value).
    One panel per execution.
    """
    check_columns(df, ["execution", "model", "uplink_mbps", "predicted_ms", "observed_ms", "kind"], source="kind")
    executions = list(dict.fromkeys(df["execution"]))
    models, uplinks = df["model"].unique(), sorted(df["uplink_mbps"].unique())
    with use_style():
        fig, axes = panels(1, len(executions), 1.0 + 1.9 / len(executions) ** 0.5, sharey=True)
        ends = [
            df[["predicted_ms", "observed_ms"]].min().min() / 1.3,
            df[["predicted_ms", "observed_ms"]].max().max() * 1.3,
        ]
        colours, markers = dict(zip(models, MODEL_COLOURS, strict=False)), dict(zip(uplinks, "ov^sDP", strict=False))
        for ax, execution in zip(axes, executions, strict=True):
            ax.plot(ends, ends, color=BLACK, linewidth=0.6)
            ax.fill_between(ends, np.multiply(ends, 0.9), np.multiply(ends, 1.1), color=GREY, alpha=0.25, linewidth=0)
            for (model, uplink), rows in df[df["execution"] == execution].groupby(["model", "uplink_mbps"]):
                ax.plot(rows["observed_ms"], rows["predicted_ms"], markers[uplink], color=colours[model],
                        markersize=3.5, markeredgewidth=0.6, fillstyle="none")  # fmt: skip
            ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=execution)
            for direction in (ax.xaxis, ax.yaxis):
                direction.set_major_locator(LogLocator(subs=(1, 3)))
                direction.set_major_formatter("{x:g}")
                direction.set_minor_formatter(NullFormatter())
            ax.set_xlabel(f"{df['kind'].iloc[0]} (ms)")
        axes[0].set_ylabel("predicted time per iteration (ms)")
        axes[0].text(0.03, 0.95, "band: within 10%", transform=axes[0].transAxes, va="top")
        shapes = [Line2D([], [], color=colour) for colour in colours.values()]
        shapes += [Line2D([], [], color=BLACK, marker=m, linestyle="", fillstyle="none") for m in markers.values()]
        labels = [*colours, *(f"{uplink:g} Mbit/s" for uplink in markers)]
        fig.legend(shapes, labels, loc="outside lower center", ncols=3)
    return fig


def plot_errors(df: pd.DataFrame, by: str, source: Source, limit: float | None = None, unit: str = "%") -> Figure:
    """How far predictions are off, a row of points per execution of each value of ``by``, with median and quartiles.

    Columns: ``by``, execution, error_percent. ``limit``: a band of that many percent either way is shaded. ``unit``:
    what the errors are percent of.
    """
    check_columns(df, [by, "execution", "error_percent"])
    rows, executions = list(dict.fromkeys(df[by])), list(dict.fromkeys(df["execution"]))
    with use_style():
        fig, ax = panel(0.9 + (0.05 + 0.15 * len(executions)) * len(rows))
        if limit is not None:
            ax.axvspan(-limit, limit, color=GREY, alpha=0.25, linewidth=0)
        ax.axvline(0, color=BLACK, linewidth=0.6)
        for (y, row), (index, execution) in product(enumerate(rows), enumerate(executions)):
            errors = df.loc[(df[by] == row) & (df["execution"] == execution), "error_percent"]
            if errors.empty:
                continue
            height, colour = y + 0.36 * (index - (len(executions) - 1) / 2), MODEL_COLOURS[index]
            low, median, high = np.quantile(errors, [0.25, 0.5, 0.75])
            ax.plot(errors, np.full(len(errors), height), "o", color=colour, fillstyle="none", markeredgewidth=0.5,
                    label=execution if y == 0 else None)  # fmt: skip
            ax.errorbar(median, height, xerr=[[median - low], [high - median]], fmt="|", color=BLACK, markersize=7)
        ax.set_yticks(range(len(rows)), rows)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(f"predicted minus {source} ({unit})")
        say_source(ax, "bars: median and quartiles" + (f"; band: within {limit:g}%" if limit else ""))
        fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def _ends_ms(spans: pd.DataFrame) -> list[float]:
    """When each iteration from 0 ends."""
    shown = spans[spans["iteration"] >= 0]
    return shown.groupby("iteration")["period_ms"].first().cumsum().tolist()


def _legend(spans: pd.DataFrame) -> dict[str, Artist]:
    """What is to be explained, by its name."""
    shown: dict[str, Artist] = {}
    for kind, ahead in spans[["kind", "ahead"]].drop_duplicates().itertuples(index=False):
        name = "waiting" if kind.startswith(Op.RECEIVE) else f"sent {ahead} ahead" if ahead else kind
        shown[name] = Patch(
            facecolor=ACTION_COLOURS[kind], edgecolor="white", hatch=HATCH if ahead else "", linewidth=0
        )
    if (spans["iteration"] > 0).any():
        shown["end of iteration"] = Line2D([], [], color=BLACK, linewidth=0.6)
    if _unseen(spans).any():
        shown["arrival unknown"] = Line2D([], [], color=BLACK, marker="|", linestyle="")
    return shown


def _unseen(spans: pd.DataFrame) -> pd.Series:
    """Which spans are sends whose message came before its receiver asked for it."""
    observed = spans["source"] != "predicted"
    return observed & spans["kind"].str.startswith(Op.SEND) & (spans["start_ms"] == spans["end_ms"])


def _draw_spans(ax: Axes, spans: pd.DataFrame, lanes: Sequence[tuple[str, str]], last_ms: float) -> None:
    """One horizontal bar per span, up to ``last_ms``; waiting is drawn first so that it hides nothing."""
    spans = spans.assign(**_places(spans, lanes))
    waiting = spans["kind"].str.startswith(Op.RECEIVE)
    for part in (spans[waiting], spans[~waiting]):
        ax.barh(
            part["y"],
            part["end_ms"].clip(upper=last_ms) - part["start_ms"],
            left=part["start_ms"],
            height=part["height"],
            color=[ACTION_COLOURS[kind] for kind in part["kind"]],
            hatch=[HATCH if ahead else "" for ahead in part["ahead"]],
            edgecolor="white",
            linewidth=0.2,
        )
    for _, span in spans[_unseen(spans)].iterrows():
        ax.plot(span["start_ms"], span["y"], "|", color=ACTION_COLOURS[span["kind"]], markersize=11 * span["height"],
                markeredgewidth=1.5)  # fmt: skip
    ax.set_yticks(range(len(lanes)), [f"{worker} {lane}" for worker, lane in lanes])
    ax.set_ylim(len(lanes) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _places(spans: pd.DataFrame, lanes: Sequence[tuple[str, str]]) -> dict[str, list[float]]:
    """The middle, ``y``, and the height of each bar: messages to several workers share the height of their row."""
    sends = spans["kind"].str.startswith(Op.SEND)
    receivers = {worker: list(peers.unique()) for worker, peers in spans[sends].groupby("worker")["peer"]}
    places: dict[str, list[float]] = {"y": [], "height": []}
    for worker, lane, peer, send in zip(spans["worker"], spans["lane"], spans["peer"], sends, strict=True):
        sharing = receivers[worker] if send else [peer]
        height = BAR / len(sharing)
        places["y"].append(lanes.index((worker, lane)) - BAR / 2 + height * (sharing.index(peer) + 0.5))
        places["height"].append(height)
    return places
