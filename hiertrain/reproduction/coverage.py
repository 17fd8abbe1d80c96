"""Whether a run holds the points that a claim is about: those of the whole grid, and as much of each.

A reduced grid is a part of the whole one. It decides a claim where one point is enough to do so, such as one setting in
which something is slower than it never should be; else it says nothing about it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

Rows = Callable[[pd.DataFrame], pd.DataFrame]


def every_row(rows: pd.DataFrame) -> pd.DataFrame:
    return rows


@dataclass(frozen=True)
class Need:
    """The points of one table that a claim is about."""

    source: str  # file in the run's folder
    columns: tuple[str, ...]  # a point is what these hold
    table: str = ""  # in a record: the result or parameter that has the rows
    chosen: Rows = every_row  # of the whole grid's rows those that the claim is about
    amount: str = ""  # column: a point counts where it has at least as much as in the whole grid
    divisible: bool = False  # a part of the points may decide the claim


@dataclass(frozen=True)
class Coverage:
    """What of the points of the whole grid a run has."""

    points: int
    here: pd.DataFrame  # the run's rows at them
    lacking: pd.DataFrame  # the points that it lacks

    @property
    def whole(self) -> bool:
        return self.lacking.empty


def covered(need: Need, rows: pd.DataFrame, whole: pd.DataFrame) -> Coverage:
    """The run's ``rows`` against those of the whole grid. Raises KeyError for a column that is not there."""
    keys = list(need.columns)
    wanted = _amounts(need.chosen(whole), need)
    found = _amounts(rows, need).rename("found")
    both = wanted.to_frame("wanted").join(found, how="left").reset_index()
    enough = both["found"] >= both["wanted"]
    here = _with_text(rows, keys).merge(both.loc[enough, keys], on=keys, how="left", indicator=True)
    return Coverage(len(both), rows[(here["_merge"] == "both").to_numpy()], both.loc[~enough, keys])


def _amounts(rows: pd.DataFrame, need: Need) -> pd.Series:
    """By point how much of it there is; 1 where nothing is counted."""
    counted = _with_text(rows, list(need.columns)).assign(amount_=rows[need.amount] if need.amount else 1)
    return counted.groupby(list(need.columns), sort=False)["amount_"].max()


def _with_text(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The points as text, in which a value that is missing equals itself, and 128 a number that was read as 128.0."""
    return rows[keys].map(lambda value: str(float(value) if isinstance(value, int | float) else value)).astype(str)


def needed(needs: Sequence[Need], decided: str | None) -> str:
    """The rule in words."""
    parts = []
    for need in needs:
        amount = f", each with as many {need.amount}" if need.amount else ""
        parts.append(f"every {' and '.join(need.columns)} of {_place(need)}{amount}")
    alone = f"; a part can show that it {decided}" if decided else ""
    return f"{'; '.join(parts)}, as in the whole grid{alone}"


def lacks(needs: Sequence[Need], coverages: Sequence[Coverage]) -> str:
    """What is not there, in words, with an example; empty where nothing is missing."""
    parts = []
    for need, coverage in zip(needs, coverages, strict=False):
        if not coverage.whole:
            example = ", ".join(f"{name} {value}" for name, value in coverage.lacking.iloc[0].items())
            parts.append(f"{len(coverage.lacking)} of {coverage.points} points of {_place(need)}, such as {example}")
    return "; ".join(parts)


def _place(need: Need) -> str:
    return f"{need.source} ({need.table})" if need.table else need.source
