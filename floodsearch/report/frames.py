"""The data of a study as pandas' DataFrames, where pandas is installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from floodsearch.errors import UsageError

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> DataFrame:
    """Return rows as a DataFrame with these columns; what is not known is missing there.

    Raises:
        UsageError: if pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UsageError(
            "a DataFrame needs pandas: pip install pandas; without, floodsearch export writes the data "
            "of a study as CSV, JSON or Parquet"
        ) from None
    return pandas.DataFrame(list(rows), columns=list(columns))
