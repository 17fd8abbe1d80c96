"""Figures: each can be drawn from its table, says where its numbers come from, and is saved reproducibly."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hiertrain import files
from hiertrain.figures import (
    ACTION_COLOURS,
    ONE_PROCESS,
    POLICY_STYLES,
    load_caption,
    plot_ablation,
    plot_agreement,
    plot_convergence,
    plot_differences,
    plot_errors,
    plot_executions,
    plot_fit,
    plot_gaps,
    plot_growth,
    plot_layer_times,
    plot_layers,
    plot_learning,
    plot_map,
    plot_overlap,
    plot_ratios,
    plot_shares,
    plot_solve_times,
    plot_speedups,
    plot_sweeps,
    plot_timeline,
    plot_times,
    save_figure,
)
from hiertrain.figures.granularity import MAP_TITLE
from hiertrain.program.actions import Op, Role
from hiertrain.values import InputError

LAYERS = pd.DataFrame(
    {"layer": ["a", "b"], "output_kib_per_sample": [4.0, 0], "parameter_kib": [0, 9.0], "sample_kib": 1}
)
TIMES = pd.DataFrame(
    [
        {"worker": worker, "layer": layer, "step": step, "batch_ms": 2.0, "samples": 8}
        for worker in ("device", "edge")
        for layer in "abc"
        for step in ("forward", "backward")
    ]
)
FIT = pd.DataFrame(
    [
        {"layer": layer, "samples": n, "median_ms": n, "spread_ms": 0.1, "fitted_ms": n + 0.1}
        for layer in "abc"
        for n in (1, 8, 32)
    ]
)
SPANS = pd.DataFrame(
    [
        {"iteration": 0, "worker": "edge", "kind": str(kind), "peer": "cloud", "ahead": 0, "lane": lane}
        | {"start_ms": i, "end_ms": i + 1, "period_ms": len(ACTION_COLOURS), "source": source}
        for i, kind in enumerate(ACTION_COLOURS)
        for lane in ("compute", "network")
        for source in ("predicted", "measured")
    ]
)
POLICIES = pd.DataFrame(
    [
        {"policy": policy, "iteration_ms": 5.0, "low_ms": low, "high_ms": 6.0, "kind": kind}
        for policy in ("by hand", "hiertrain")
        for kind, low in (("predicted", np.nan), ("measured", 4.0))
    ]
)
CURVES = pd.DataFrame(
    [{"policy": policy, "iteration": i, "time_s": i / 2, "loss": 1 / i} for policy in POLICY_STYLES for i in (1, 2, 3)]
)
AGREEMENT = pd.DataFrame(
    [
        {"execution": execution, "model": model, "uplink_mbps": mbps, "kind": "measured"}
        | {"predicted_ms": 9.0 * mbps, "observed_ms": 10.0 * mbps}
        for execution in ("paper", "overlapped")
        for model in ("lenet5", "vgg16")
        for mbps in (1.5, 5.0)
    ]
)
ERRORS = pd.DataFrame(
    {"case": ["a", "a", "b"], "execution": ["paper", "overlapped", "paper"], "error_percent": [-3.0, 1.0, 12.0]}
)
RATIOS = pd.DataFrame(
    [
        {"case": case, "rival": rival, "ratio": 1.1, "low": 1.0, "high": 1.3}
        for case in ("a, 32", "b, 8")
        for rival in ("plain", "ddp")
    ]
)
SOLVING = pd.DataFrame(
    [
        {"model": model, "way": way, "solve_s": seconds, "axis": axis, "value": value}
        for model in ("lenet5", "vgg16")
        for way in ("trees", "stars", "programmes")
        for seconds, axis, value in ((0.1, "layers", 5), (2.0, "layers", 10), (0.5, "workers", 3))
    ]
)
GAPS = pd.DataFrame(
    {"model": "lenet5", "batch_size": [8, 32], "gap_percent": [0.0, 0.1], "bound_below_percent": [0.5, 0.0]}
)
SHARES = pd.DataFrame(
    [
        {"model": model, "cloud_mbps": mbps, "worker": worker, "sample_percent": percent, "depth_percent": depth}
        for model in ("lenet5", "vgg16")
        for mbps in (1.0, 5.0)
        for worker, percent, depth in (("device", 0.0, 0.0), ("edge", 25.0, 100.0), ("cloud", 75.0, 50.0))
    ]
)
MAP = pd.DataFrame(
    [
        {"model": model, "batch_size": 4, "samples_stay": stay, "cloud_mbps": cloud, "device_edge_mbps": edge}
        | {"winner": winner, "gain_percent": gain}
        for model in ("lenet5", "vgg16")
        for stay in (False, True)
        for cloud, winner, gain in ((1.0, "cloud", 0.0), (5.0, "both", 1100.0))
        for edge in (2.0, 20.0)
    ]
)
HERE = pd.DataFrame({"model": ["lenet5", "vgg16"], "cloud_mbps": [5.0, 7.0], "device_edge_mbps": [20.0, 20.0]})
LEARNING = pd.DataFrame(
    [
        {"policy": policy, "drawn_as": drawn_as, "iteration": i, "time_s": time, "loss": 1 / i}
        | {"difference": i * 1e-7, "encoding": encoding}
        for policy, drawn_as, time, encoding in (
            ("all-edge, jalad+", "all-edge", 2.0, "float32"),
            ("jalad at pool2", "jalad", 3.0, "uint8"),
            ("float16 at pool2", "jointdnn", 3.0, "float16"),
            (ONE_PROCESS, None, np.nan, "float32"),
        )
        for i in (1, 2, 3)
    ]
)
SPEEDUPS = pd.DataFrame(
    [
        {"sweep": "cloud_mbps", "model": model, "policy": policy, "cloud_mbps": rate, "predicted": 2.0}
        | {"observed": 0.5, "low": 0.4, "high": 9.0}
        for model in ("lenet5", "alexnet")
        for policy in ("all-cloud", "hiertrain+")
        for rate in (1.5, 5.0)
    ]
)
ABLATION = pd.DataFrame(
    [
        {"model": model, "cloud_mbps": mbps, "step": step, "speedup_predicted": 1.5, "over_limit_predicted": 1.2}
        | {"speedup_observed": x, "over_limit_observed": x, "speedup_low": x - 0.1, "speedup_high": x + 0.1}
        for model in ("lenet5", "vgg16")
        for mbps, x in ((1.0, np.nan), (5.0, 1.4))
        for step in ("star", "tree")
    ]
)
TIMED = pd.DataFrame(
    [
        {"policy": policy, "execution": execution, "predicted_ms": 4.0, "observed_ms": x, "low_ms": x, "high_ms": x + 1}
        for policy, x in (("all-cloud", 5.0), ("jalad", 5.0), ("hiertrain", np.nan))
        for execution in ("paper", "overlapped")
    ]
)
DRAWINGS = [
    (plot_executions, TIMED, "paper's execution"),
    (plot_ablation, ABLATION, "point: real run"),
    (lambda df: plot_speedups(df, "cloud_mbps"), SPEEDUPS.drop(columns="sweep"), "line: predicted"),
    (plot_sweeps, SPEEDUPS.drop(columns="model"), "point: real run"),
    (plot_layers, LAYERS, "exact sizes"),
    (lambda df: plot_layer_times(df, "emulated"), TIMES, "emulated"),
    (lambda df: plot_fit(df, "measured"), FIT, "measured"),
    (plot_timeline, SPANS, "predicted: 13 ms"),
    (plot_times, POLICIES, "predicted"),
    (lambda df: plot_convergence(df, "measured"), CURVES, "measured"),
    (lambda df: plot_ratios(df, "measured"), RATIOS, "measured"),
    (plot_agreement, AGREEMENT, "measured (ms)"),
    (plot_solve_times, SOLVING[["model", "way", "solve_s"]], "measured"),
    (plot_growth, SOLVING[["axis", "value", "way", "solve_s"]], "measured"),
    (plot_gaps, GAPS, "dots: rounded plans; ticks: their bounds; predicted"),
    (plot_shares, SHARES, "predicted"),
    (lambda df: plot_map(df, HERE), MAP, MAP_TITLE),
    (
        lambda df: plot_overlap(df, {"hiertrain": "before", "hiertrain+": "after"}),
        pd.concat(
            [SPANS.assign(policy="hiertrain"), *(SPANS.assign(policy="hiertrain+", iteration=i) for i in (0, 1))]
        ),
        "predicted",
    ),
    (
        lambda df: plot_learning(df, "loss", "measured"),
        LEARNING[["policy", "drawn_as", "iteration", "time_s", "loss"]],
        "measured",
    ),
    (
        lambda df: plot_differences(df, "measured"),
        LEARNING[LEARNING["policy"] != ONE_PROCESS].drop(columns="time_s"),
        "measured",
    ),
    (lambda df: plot_errors(df, "case", "emulated", 10), ERRORS, "predicted minus emulated (%)"),
]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(figure: Figure) -> set[str]:
    """All that is written in a figure."""
    return {text.get_text() for text in figure.findobj(plt.Text) if isinstance(text, plt.Text)}


@pytest.mark.parametrize(("draw", "df", "source"), DRAWINGS)
def test_every_figure_says_its_source_and_needs_its_columns(draw, df, source):
    assert source in texts(draw(df))
    for column in df.columns:
        with pytest.raises(InputError, match=rf"figure: column '{column}' is missing"):
            draw(df.drop(columns=column))
    with pytest.raises(InputError, match="has no rows"):
        draw(df.iloc[:0])


def test_saving_writes_the_same_bytes_again_and_the_data_beside_them(tmp_path):
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        save_figure(plot_times(POLICIES), "times", "try", POLICIES, "Times, measured.", folder)
        saved = folder / "try" / "figures"
        assert sorted(path.name for path in saved.iterdir()) == ["times.csv", "times.pdf", "times.png"]
        contents.append({path.name: path.read_bytes() for path in saved.iterdir()})
    assert contents[0] == contents[1]
    assert b"/Type3" not in contents[0]["times.pdf"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a" / "try" / "figures" / "times.csv"), POLICIES)


@pytest.mark.parametrize("caption", ["Times, measured: 5 ms (\u2264 10).", "Sizes <of layers> & more. Exact."])
def test_captions_travel_inside_the_files(tmp_path, caption):
    save_figure(plot_layers(LAYERS), "layers", "try", LAYERS, caption, tmp_path)
    folder = tmp_path / "try" / "figures"
    assert load_caption(folder / "layers.png") == caption
    subject = re.search(rb"/Subject \((.*?)(?<!\\)\)", (folder / "layers.pdf").read_bytes(), flags=re.DOTALL)
    assert subject
    text = re.sub(rb"\\(.)", rb"\1", subject[1])  # UTF-16 where there is more than ASCII
    assert text.decode("ascii" if text.isascii() else "utf-16") == caption


def test_only_saved_figures_have_captions(tmp_path):
    Image.new("L", (1, 1)).save(tmp_path / "bare.png")
    files.write_text(tmp_path / "text.png", "text")
    for name, message in (("none", "No such file"), ("text", "not an image"), ("bare", "has no caption")):
        with pytest.raises(InputError, match=rf"{name}\.png: {message}"):
            load_caption(tmp_path / f"{name}.png")


def test_a_caption_must_say_where_its_numbers_come_from(tmp_path):
    with pytest.raises(InputError, match=r"figure times: caption 'Times\.': must say one of predicted, emulated, meas"):
        save_figure(plot_times(POLICIES), "times", "try", POLICIES, "Times.", tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_process_has_no_line_over_time_and_runs_are_drawn_as_a_policy():
    over_iterations, over_time = plot_learning(LEARNING, "loss", "measured").axes
    colours = [POLICY_STYLES[policy][0] for policy in ("all-edge", "jalad", "jointdnn")]
    assert [line.get_color() for line in over_iterations.lines] == [*colours, "#000000"]
    assert [line.get_color() for line in over_time.lines] == colours


def test_half_precision_has_marks():
    above, below = plot_differences(LEARNING.dropna(subset="drawn_as"), "measured").axes
    for ax in (above, below):
        assert [line.get_marker() for line in ax.lines] == ["None", "None", "^"]


def test_unknown_sources_and_policies_are_refused():
    with pytest.raises(InputError, match="kind 'guessed': must be one of predicted, emulated, measured"):
        plot_times(POLICIES.assign(kind="guessed"))
    with pytest.raises(InputError, match="policy 'all-cloudy' has no style"):
        plot_convergence(CURVES.assign(policy="all-cloudy"), "measured")


def test_every_action_has_a_colour():
    messages = {f"{op} {role}" for op in (Op.SEND, Op.RECEIVE) for role in Role}
    assert set(ACTION_COLOURS) == messages | {Op.FORWARD, Op.BACKWARD, Op.UPDATE}


def test_a_send_of_unknown_end_is_a_tick_that_the_legend_explains() -> None:
    sent = SPANS[SPANS["kind"] == "send gradients"].head(1)
    sent = sent.assign(end_ms=sent["start_ms"] + 0.0)
    waiting = SPANS[SPANS["kind"] == "receive gradients"].head(1)
    for source, ticks in (("measured", 1), ("predicted", 0)):
        fig = plot_timeline(pd.concat([sent, waiting]).assign(source=source))
        assert len(fig.axes[0].lines) == ticks
        labels = [text.get_text() for text in fig.legends[0].get_texts()]
        assert ("arrival unknown" in labels) == bool(ticks)


def test_overlapped_iterations_are_divided_by_lines_and_cut_where_the_last_ends() -> None:
    sent = SPANS[(SPANS["kind"] == "send samples") & (SPANS["source"] == "predicted")].head(1)
    several = pd.concat(
        sent.assign(iteration=number, ahead=2, start_ms=10.0 * number + 5, end_ms=10.0 * number + 25, period_ms=10.0)
        for number in (-2, -1, 0, 1, 2)
    )
    fig = plot_timeline(several)
    (ax,) = fig.axes
    assert [np.asarray(line.get_xdata())[0] for line in ax.lines] == [10, 20, 30]
    assert ax.get_xlim() == (0, 30)
    assert max(bar.get_extents().x1 for bar in ax.patches) == pytest.approx(ax.transData.transform((30, 0))[0])
    assert "predicted: 10 ms" in texts(fig)
    assert {"sent 2 ahead", "end of iteration"} <= {text.get_text() for text in fig.legends[0].get_texts()}


def test_messages_to_several_workers_share_a_row() -> None:
    sent = SPANS[(SPANS["kind"] == "send samples") & (SPANS["source"] == "predicted") & (SPANS["lane"] == "network")]
    alone, first, second = (
        ax.transData.inverted().transform(bar.get_extents())[:, 1]
        for df in (sent, pd.concat([sent, sent.assign(peer="device")]))
        for ax in plot_timeline(df).axes
        for bar in ax.patches
    )
    (top, bottom), (ours, middle), (theirs, end) = map(sorted, (alone, first, second))
    assert (ours, middle, end) == pytest.approx((top, theirs, bottom))


def test_no_speedup_is_cut_off_and_the_paper_is_seen_where_it_is_near():
    low, high = plot_speedups(SPEEDUPS, "cloud_mbps").axes[0].get_ylim()
    assert low < 0.4
    assert high > 9
    near = SPEEDUPS.assign(predicted=4.0, observed=4.0, low=np.nan, high=np.nan)
    assert plot_speedups(near, "cloud_mbps").axes[0].get_ylim()[1] > 6.9
    far = near.assign(predicted=1.1, observed=1.0)
    assert plot_sweeps(far).axes[0].get_ylim()[1] < 2
