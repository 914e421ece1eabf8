"""The progress of a search, shown while it goes on: in a notebook, in a terminal, or as plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from floodsearch.findings import StudyStatus
from floodsearch.launchers.local import Look
from floodsearch.process.terminal import one_line
from floodsearch.report.text import (
    crew_lines,
    found_text,
    progress_text,
    share_done,
    stage_text,
    time_text,
)

if TYPE_CHECKING:
    from rich.table import Table

PLAIN_SECONDS = 10.0
"""Between two progress lines when the output is not a terminal."""

Say = Callable[[str], object]
Show = Callable[[Look], None]


def seen() -> bool:
    """Return whether there is a notebook, or a terminal, in which somebody sees progress."""
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


@contextmanager
def progress(say: Say) -> Iterator[Show]:
    """Give what shows a look at a search: in one place of a notebook or terminal, as plain lines elsewhere.

    Args:
        say: tells a person something.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if _in_notebook():
        yield _Notebook().show
    elif console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:

            def show(look: Look) -> None:
                for text in look.said:
                    say(text)
                live.update(_view(look.status))

            yield show
    else:
        yield _Lines(say).show


class _Lines:
    """Progress as plain lines, now and then."""

    def __init__(self, say: Say) -> None:
        self.say, self.shown, self.last = say, "", 0.0

    def show(self, look: Look) -> None:
        """Say what is to be said, and where the study stands if that was long ago."""
        for text in look.said:
            self.say(text)
        line = progress_text(look.status)
        due = time.monotonic() - self.last >= PLAIN_SECONDS or look.status.finished
        if line != self.shown and due:
            self.say(line)
            self.shown, self.last = line, time.monotonic()


class _Notebook:
    """Progress in one place below a cell, which changes; it needs no widgets."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.place: Any = None

    def show(self, look: Look) -> None:
        """Show where the study stands, and below that all that was said."""
        from IPython.display import display
        from rich.text import Text

        self.said += look.said
        view = _view(look.status)
        for text in self.said:
            view.add_row(Text(one_line(text)))
        if self.place is None:
            self.place = display(view, display_id=True)
        else:
            self.place.update(view)


def _in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


def _view(status: StudyStatus) -> Table:
    """Return a bar over the epochs that are expected, what is trained and found, and a line a worker."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    share = share_done(status)
    told = ", ".join(filter(None, ("" if share is None else f"{share:.0%}", time_text(status))))
    bar = Table.grid(padding=(0, 1))
    total = None if share is None else 1.0
    bar.add_row(Text(one_line(status.name)), ProgressBar(total=total, completed=share or 0.0, width=24), told)
    view = Table.grid()
    view.add_row(bar)
    for line in (stage_text(status), found_text(status), *crew_lines(status)):
        if line:
            view.add_row(Text(line, style="dim", no_wrap=True, overflow="ellipsis"))
    return view
