"""From the names under which a trainer logs its metrics to those of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from floodsearch.errors import LoopError
from floodsearch.training.loop import LoopRun

EVALUATED = ("val_accuracy", "val_loss", "test_accuracy", "test_loss")
"""What is reported wherever a trainer logs it. The training loss is not: `LoopRun` knows the plain one."""


def pick(
    run: LoopRun, logged: Mapping[str, Any], name_of: Callable[[str], str], named: Mapping[str, str]
) -> dict[str, Any]:
    """Return the numbers that a run reports, by the study's names, of those that its trainer has logged.

    Args:
        run: before it has reported the epoch.
        logged: the trainer's numbers, by its own names.
        name_of: from a name of the study to that under which the trainer logs it, unless the user says.
        named: the same, for those that the user has named; all of them are reported.

    Raises:
        LoopError: if one that the user has named was not logged, or the study's metric, at an epoch at which
            it is due.
    """
    epoch = run.epoch + 1
    names = {name: name_of(name) for name in (*EVALUATED, run.metric)} | dict(named)
    for name, its in names.items():
        if its not in logged and (name in named or (name == run.metric and run.due(epoch))):
            raise LoopError(
                f"the trainer logged no {its!r} in epoch {epoch}, to report as {name}; it logged "
                f"{', '.join(sorted(logged)) or 'nothing'}; log it, or name one of these in "
                f"metrics={{{name!r}: ...}}"
            )
    return {name: logged[its] for name, its in names.items() if its in logged}
