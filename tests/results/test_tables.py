"""Tables as text."""

import numpy as np
import pandas as pd

from hiertrain.results.tables import markdown_table, residual_table
from tests.profiling.test_residuals import PROFILE


def test_markdown_has_a_line_per_row_and_a_cell_per_value():
    df = pd.DataFrame({"reason": ["a|b", "c"], "low": [np.nan, 1.2345], "plans": [3, 17]})
    assert markdown_table(df).splitlines() == [
        "| reason | low | plans |",
        "| --- | --- | --- |",
        "| a\\|b |  | 3 |",
        "| c | 1.23 | 17 |",
    ]


def test_residuals_are_the_worst_of_each_layer_and_step_and_the_worst_come_first():
    df = residual_table(PROFILE)
    assert len(df) == 2 * 2 * 2  # of the workers that were measured
    assert df["residual_percent"].tolist() == [-50, -50, 0, 0, 0, 0, 0, 0]
    assert df[["worker", "layer", "step", "samples", "measured_ms", "cost_ms"]].iloc[0].tolist() == [
        "device", "pool", "forward", 32, 128e3, 64e3
    ]  # fmt: skip
