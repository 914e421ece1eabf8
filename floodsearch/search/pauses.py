"""What it costs that a script of the user's own is judged at rungs: the rule by which a worker pauses it.

A process that is stopped at a rung and kept goes on where it was, for nothing. One that is ended begins again
from its first epoch, unless it keeps checkpoints of its own. So it is ended only where what the others no
longer train is worth that, by the plan of the judge; else it is trained to its end at once. A search of a
grid then trains no more epochs than the grid has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from floodsearch.search.judge import Judge


def restart_pays(judge: Judge, judged: int, epoch: int, epochs: int) -> bool:
    """Return whether to end processes at a rung costs no more than to train all of them to their ends.

    Args:
        judge: of the study.
        judged: levels above 0 that are compared there.
        epoch: the rung.
        epochs: of a run.
    """
    going_on = next((alive for after, _, alive in judge.plan(judged, epoch - 1, epochs) if after >= epoch), 0)
    return going_on * epoch <= (judged - going_on) * (epochs - epoch)


def script_plan(
    judge: Judge, levels: int, seeds: int, epoch: int, epochs: int, *, kept: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (after which epoch, up to which one, how many runs) the levels of a bracket above 0 will train.

    Args:
        judge: of the study.
        levels: above 0, alive and behind the same epoch.
        seeds: of each.
        epoch: that they have reached.
        epochs: of a run.
        kept: how many stopped processes are kept; those of the first runs that come to a rung.
    """
    judged = 1.0  # the share of the living runs that is not at its end already
    stages = list(judge.plan(levels, epoch, epochs))
    for place, (after, until, alive) in enumerate(stages):
        runs = alive * seeds * judged
        yield after, until, math.ceil(runs)
        if alive == 1 or until == epochs:
            continue
        ended = max(0.0, 1 - kept / runs) if runs else 0.0
        if restart_pays(judge, alive, until, epochs):
            yield 0, until, math.ceil(stages[place + 1][2] * seeds * judged * ended)
        else:
            yield until, epochs, math.ceil(runs * ended)
            judged *= 1 - ended
