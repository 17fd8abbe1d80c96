"""What of the whole grid's points a run has."""

import pandas as pd
import pytest

from hiertrain.reproduction.coverage import Need, covered, lacks, needed

NEED = Need("tables/t.csv", ("model", "rate"), amount="blocks", chosen=lambda rows: rows[rows["rate"] < 9])
WHOLE = pd.DataFrame({"model": ["a", "a", "b"], "rate": [1.0, 9.0, 2.5], "blocks": [4, 4, 2], "x": 0})


def test_points_beyond_those_that_are_needed_do_no_harm():
    rows = pd.DataFrame({"model": ["b", "c", "a"], "rate": [2.5, 7, 1], "blocks": [2, 1, 5]})
    found = covered(NEED, rows, WHOLE)
    assert found.whole
    assert found.points == 2
    assert list(found.here["model"]) == ["b", "a"]
    assert lacks([NEED], [found]) == ""


@pytest.mark.parametrize("blocks", [3, 4])
def test_a_point_counts_where_there_is_as_much_of_it(blocks):
    found = covered(NEED, pd.DataFrame({"model": ["a"], "rate": [1], "blocks": [blocks]}), WHOLE)
    assert len(found.here) == (blocks == 4)
    assert list(found.lacking["model"]) == (["b"] if blocks == 4 else ["a", "b"])


def test_what_is_missing_equals_itself():
    need = Need("t", ("policy", "encoding"))
    rows = pd.DataFrame({"policy": ["one process", "jalad"], "encoding": [None, "uint8"]})
    assert covered(need, rows, rows).whole


def test_the_rule_and_what_is_lacking_in_words():
    found = covered(NEED, WHOLE[:2], WHOLE)
    assert lacks([NEED], [found]) == "1 of 2 points of tables/t.csv, such as model b, rate 2.5"
    assert needed([NEED], "fails") == (
        "every model and rate of tables/t.csv, each with as many blocks, as in the whole grid; a part can show that it "
        "fails"
    )
    assert needed([Need("r", ("x",), table="list")], None) == "every x of r (list), as in the whole grid"


def test_a_table_without_rows_has_no_points():
    found = covered(NEED, WHOLE[:0], WHOLE)
    assert (found.whole, found.points, len(found.here)) == (False, 2, 0)
