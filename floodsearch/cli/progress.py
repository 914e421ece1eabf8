"""The progress of a search, shown while it goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from floodsearch.cli.printing import say
from floodsearch.process.terminal import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from floodsearch.findings import StudyStatus
    from floodsearch.launchers.local import Launch

PLAIN_SECONDS = 10.0
"""Between two progress lines when the output is not a terminal."""


def show_progress(launched: Launch) -> None:
    """Show live progress: a line that changes in a terminal, plain lines elsewhere."""
    from rich.console import Console
    from rich.live import Live

    from floodsearch.report.text import progress_text

    console = Console(stderr=True)
    if launched.slots:
        count, devices = len(launched.slots), ", ".join(launched.crew.devices)
        workers = "1 worker" if count == 1 else f"{count} workers"
        say(f"{workers} on {devices}; logs in {launched.slots[0].log.parent}")
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            for status, said in launched.watch():
                for text in said:
                    say(text)
                live.update(_view(status))
        return
    shown, last = "", 0.0
    for status, said in launched.watch():
        for text in said:
            say(text)
        line = progress_text(status)
        if line != shown and (time.monotonic() - last >= PLAIN_SECONDS or status.finished):
            say(line)
            shown, last = line, time.monotonic()


def _view(status: StudyStatus) -> Table:
    """Return a bar over the epochs that are expected, what is trained and found, and a line a worker."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from floodsearch.report.text import crew_lines, found_text, share_done, stage_text, time_text

    share = share_done(status)
    told = ", ".join(filter(None, ("" if share is None else f"{share:.0%}", time_text(status))))
    bar = Table.grid(padding=(0, 1))
    total = None if share is None else 1.0
    progress = ProgressBar(total=total, completed=share or 0.0, width=24)
    bar.add_row(Text(one_line(status.name)), progress, told)
    view = Table.grid()
    view.add_row(bar)
    for line in (stage_text(status), found_text(status), *crew_lines(status)):
        if line:
            view.add_row(Text(line, style="dim", no_wrap=True, overflow="ellipsis"))
    return view
