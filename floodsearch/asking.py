"""What Python asks of a study: its answer, that can be printed and drawn, and its data."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from floodsearch import queries
from floodsearch.defaults import STORAGE
from floodsearch.figures.levels import draw_levels
from floodsearch.findings import BestLevel, CurvePoint
from floodsearch.report.export import curve_rows, trial_rows
from floodsearch.report.frames import frame
from floodsearch.report.text import best_text
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import StoredStudy, find_study

if TYPE_CHECKING:
    from IPython.lib.pretty import RepresentationPrinter
    from matplotlib.axes import Axes
    from pandas import DataFrame


class Answer(BestLevel):
    """The answer to "which b?": a record, whose text is what the command line prints."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return the answer in a few lines; the last one is to be pasted into a training loop."""
        return best_text(self)

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        """Show the same in a notebook."""
        del cycle
        printer.text(str(self))

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the metric over the levels, with its band, level 0 and this level; needs matplotlib.

        Args:
            axes: to draw on; those of a new figure by default.

        Returns:
            The axes.

        Raises:
            UsageError: if no levels were compared, or matplotlib is not installed.
        """
        return draw_levels(self, axes)

    def curve(self) -> DataFrame:
        """Return the curve over levels, ascending, as a DataFrame; needs pandas.

        Returns:
            One row a level. `level` is in the unit of the training loss; `value` the mean over seeds at the
            end of training, `mean` the smooth curve, `se` its standard error and `low` to `high` its 90 %
            interval, in the unit of the metric; `seeds` with how many it was trained, and `complete` whether
            to the end: the value of a level that was pruned is carried on to there.

        Raises:
            UsageError: if pandas is not installed.
        """
        return frame([field.name for field in fields(CurvePoint)], map(asdict, self.points))


def best(name: str, *, storage: str = STORAGE) -> Answer:
    """Return the best flood level of a study.

    Args:
        name: of the study.
        storage: `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`.

    Raises:
        UsageError: if the storage cannot be opened or holds no such study.
        DamagedError: if a row of the study was changed by hand so that it cannot be read.
        NoAnswerError: if no ticket is complete yet.
        StorageFailedError: if the storage fails while it is read.
    """
    with open_database(storage, read_only=True) as database:
        return answer(find_study(database, name))


def answer(study: StoredStudy) -> Answer:
    """Return the best flood level of an open study.

    Raises:
        NoAnswerError: if no ticket is complete yet.
    """
    found = queries.answer(study)
    return Answer(**{field.name: getattr(found, field.name) for field in fields(found)})


def trials(name: str, *, storage: str = STORAGE) -> DataFrame:
    """Return the trials of a study as a DataFrame, a row each, with the columns of `floodsearch export`.

    Columns that begin with `seed_` hold a list, one number a seed.

    Args:
        name: of the study.
        storage: `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`.

    Raises:
        UsageError: if the storage cannot be opened or holds no such study, or pandas is not installed.
        DamagedError: if a row of the study was changed by hand so that it cannot be read.
        StorageFailedError: if the storage fails while it is read.
    """
    with open_database(storage, read_only=True) as database:
        return frame(*trial_rows(find_study(database, name)))


def curves(name: str, *, storage: str = STORAGE) -> DataFrame:
    """Return the curves of a study as a DataFrame, a row for each ticket, seed and epoch.

    The columns are those of `floodsearch export --curves`.

    Args:
        name: of the study.
        storage: `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`.

    Raises:
        UsageError: if the storage cannot be opened or holds no such study, or pandas is not installed.
        DamagedError: if a row of the study was changed by hand so that it cannot be read.
        StorageFailedError: if the storage fails while it is read.
    """
    with open_database(storage, read_only=True) as database:
        return frame(*curve_rows(find_study(database, name)))
