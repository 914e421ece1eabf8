"""The runs of a try beside each other: in what they differ, number by number and by what their code held.

Numbers are compared in the order in which they came up. Where the same run, trained twice, is the same to the
last digit, any difference tells; else one beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from floodsearch.training.independence import COMPARED, ELSEWHERE, ON_A_CPU
from floodsearch.tryout.observed import Part, Snapshot, Tried

FAR = 100.0
"""A level that is so many times the highest loss is above the losses of the first epochs."""
CodeKind = Literal["task", "loop", "command"]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of a try; those that were not trained are None.

    Args:
        first: the unflooded run of the first seed.
        again: the same, a second time.
        paused: its second epoch, from a checkpoint that was saved where that began.
        far: the same seed at a level far above its losses.
        other: another seed, unflooded.
        metric: of the study.
        kind: of the code that trained them; of a task and a command nobody has seen the batches.
        prunes: whether the study stops runs at rungs.
        on_a_cpu: whether they trained on a CPU.
        from_pilot: whether the highest level is to be found from `val_loss`.
    """

    first: Tried
    again: Tried | None = None
    paused: Tried | None = None
    far: Tried | None = None
    other: Tried | None = None
    metric: str = "val_accuracy"
    kind: CodeKind = "loop"
    prunes: bool = True
    on_a_cpu: bool = True
    from_pilot: bool = False

    @property
    def rounding(self) -> float:
        """Relative difference that is none: 0 where the same run was the same twice."""
        if self.again is not None and first_difference(self.first, self.again) is None:
            return 0.0
        return ON_A_CPU if self.on_a_cpu else ELSEWHERE


def far_level(first: Tried, highest: float) -> float:
    """Return a level far above all losses of a run; where nobody has seen these, above a study's levels."""
    records = first.records
    seen = [loss for one in records for loss in (one.train_loss, one.val_loss) if loss is not None]
    scale = max(map(abs, [*first.losses, *seen]), default=max(highest, 1.0))
    return float(f"{FAR * max(scale, 1e-6):.2g}")


def wants_again(runs: Runs) -> bool:
    """Return whether the first run is to be trained a second time, to tell what a difference comes from."""
    if runs.paused is None:
        return True  # nothing else shows whether a run can be repeated
    if first_difference(runs.first, runs.paused) is not None:
        return True
    if runs.far is None:
        return False
    begun_otherwise = any(
        part.shared for _, part, _ in differing(runs.first.at_start.get(1), runs.far.at_start.get(1))
    )
    return begun_otherwise or first_losses(runs.first, runs.far) is not None


def numbers(tried: Tried, epoch: int) -> dict[str, float]:
    """Return the numbers of an epoch by what a message calls them, in the order in which they came up."""
    shown = tried.shown.get(epoch)
    losses = tried.partial if shown is None else shown.losses
    if shown is None and epoch != tried.unended:
        return {}
    found = {f"the loss of batch {batch}": loss for batch, loss in enumerate(losses, start=1)}
    if shown is not None:
        told = {name: getattr(shown.record, name) for name in ("train_loss", *COMPARED)}
        found |= {name: value for name, value in told.items() if value is not None}
    return {f"{name} of epoch {epoch}": value for name, value in found.items()}


def _epochs(*runs: Tried) -> list[int]:
    """Return the epochs of which all of some runs have shown something."""
    return [
        epoch
        for epoch in sorted(set().union(*({*one.shown, one.unended} for one in runs)))
        if all(numbers(one, epoch) for one in runs)
    ]


def first_difference(one: Tried, other: Tried, rounding: float = 0.0) -> str | None:
    """Return the first number that is another in two runs, as a message tells it; None if none is."""
    for epoch in _epochs(one, other):
        mine, its = numbers(one, epoch), numbers(other, epoch)
        for name, value in mine.items():
            if name in its and abs(value - its[name]) > rounding * max(abs(value), abs(its[name])):
                return f"{name}: {value:.6g} and {its[name]:.6g}"
    return None


def shared_numbers(one: Tried, other: Tried) -> set[float]:
    """Return the distinct numbers of two runs that are the same in all of them; none if one differs."""
    if first_difference(one, other) is not None:
        return set()
    return {value for epoch in _epochs(one, other) for value in numbers(one, epoch).values()}


def first_losses(one: Tried, other: Tried, rounding: float = 0.0) -> str | None:
    """Return the losses of the first batch if they differ, as a message tells them."""
    pair = [run.losses[0] for run in (one, other) if run.losses]
    if len(pair) < 2 or abs(pair[0] - pair[1]) <= rounding * max(map(abs, pair)):
        return None
    return f"the loss of the first batch: {pair[0]:.6g} and {pair[1]:.6g}"


def differing(one: Snapshot | None, other: Snapshot | None) -> Iterator[tuple[str, Part, Part]]:
    """Yield the parts that two runs both hold, but not with the same content."""
    for name, part in (one or {}).items():
        its = (other or {}).get(name)
        if its is not None and (its.kind, its.digest) != (part.kind, part.digest):
            yield name, part, its
