"""Tables as text."""

import numpy as np
import pandas as pd

from hiertrain.tables import markdown_table


def test_markdown_has_a_line_per_row_and_a_cell_per_value():
    df = pd.DataFrame({"reason": ["a|b", "c"], "low": [np.nan, 1.2345], "plans": [3, 17]})
    assert markdown_table(df).splitlines() == [
        "| reason | low | plans |",
        "| --- | --- | --- |",
        "| a\\|b |  | 3 |",
        "| c | 1.23 | 17 |",
    ]
