"""The progress of a launch, shown while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from floodsearch.cli.printing import say

if TYPE_CHECKING:
    from floodsearch.launchers.local import Launch


def show_progress(launched: Launch) -> None:
    """Show live progress: a line that changes in a terminal, plain lines elsewhere."""
    from floodsearch.launchers.progress import progress

    if launched.slots:
        count, devices = len(launched.slots), ", ".join(launched.crew.devices)
        workers = "1 worker" if count == 1 else f"{count} workers"
        say(f"{workers} on {devices}; logs in {launched.slots[0].log.parent}")
    with progress(say) as show:
        for look in launched.watch():
            show(look)
