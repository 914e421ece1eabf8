"""What it costs that a script of the user's own is judged at rungs: the rule by which a worker pauses it.

A process that is stopped at a rung and kept goes on where it was, for nothing. One that is ended begins again
from its first epoch, unless it keeps checkpoints of its own. So it is ended only where what the others no
longer train is worth that, by the plan of the judge; else it is trained to its end at once. A search of a
grid then trains no more epochs than the grid has.
"""

from __future__ import annotations

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
