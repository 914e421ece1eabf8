"""From the runs of a try to what is wrong with the code that they trained: pure, without training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from floodsearch.records import REPORTED
from floodsearch.training.independence import ELSEWHERE, ON_A_CPU, PROOF, weight
from floodsearch.tryout.compared import (
    CodeKind,
    Runs,
    differing,
    first_difference,
    first_losses,
    numbers,
    shared_numbers,
)
from floodsearch.tryout.observed import Part, Tried
from floodsearch.tryout.result import Finding
from floodsearch.worker.mistakes import DROPPED

MOST_NAMED = 3
"""Of the variables that differ, so many are named."""
DRAWN: Mapping[CodeKind, str] = {
    "task": "draw the data from the seed that is given, as by torch.Generator().manual_seed(seed), and keep "
    "nothing from batch to batch but in the model",
    "loop": "seed all that it draws by run.seed, generators of its own, too, as in "
    "torch.Generator().manual_seed(run.seed) or numpy.random.default_rng(run.seed)",
    "command": "let the command seed by {seed} all that it draws",
}
"""What to do about draws that no seed fixes."""
FEWEST_VALUES = 4
"""So many equal values of a metric, over runs that differ, show that it says nothing."""


def findings(runs: Runs) -> list[Finding]:
    """Return what is wrong, from what spoils all the rest to what spoils little."""
    if runs.first.error is not None:
        return [_failure("fails", "", runs.first)]
    found = [*_failures(runs)]
    unrepeatable = [*_not_repeatable(runs)]
    found += unrepeatable or [*_pause(runs)]
    found += [*_seed(runs), *_level(runs, compare=not unrepeatable)]
    found += [*_evaluation(runs), *_metrics(runs), *_files(runs)]
    return list(dict.fromkeys(found))


# --- what fails ---


def _failure(kind: str, when: str, tried: Tried) -> Finding:
    return Finding(kind, f"{when}{tried.error}")


def _failures(runs: Runs) -> Iterator[Finding]:
    for one in (runs.far, runs.other, runs.again):
        if one is not None and one.mistake:
            yield _failure("global state", "", one)
            return
    if runs.paused is not None and runs.paused.error is not None:
        yield _failure("pause", "where a run goes on after a pause: ", runs.paused)
    if runs.other is not None and runs.other.error is not None:
        yield _failure("seed", f"with seed {runs.other.key.seed}: ", runs.other)
    far = runs.far
    if far is None or far.error is None or far.diverged:
        return
    if not far.shown and len(far.losses) <= 1:  # later it is a model's that was driven away from its data
        yield _failure("level", f"at level {far.key.level:g}: ", far)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


# --- the same run twice ---


def _not_repeatable(runs: Runs) -> Iterator[Finding]:
    """Look for what a run has beside its seed and level: what an earlier one left, and unseeded draws."""
    if runs.again is None:
        return
    rounding = ON_A_CPU if runs.on_a_cpu else ELSEWHERE
    where = first_difference(runs.first, runs.again, rounding)
    parts = [*differing(runs.first.at_start.get(1), runs.again.at_start.get(1))]
    left = [
        name
        for name, part, its in parts
        if part.shared and (where is not None or (part.kind == its.kind == "plain" and part.decides))
    ]
    seed = runs.first.key.seed
    if left:
        yield Finding(
            "global state",
            f"{_named(left)} goes on from run to run: make it inside of the function, so that each run "
            "begins anew",
        )
    elif where is not None:
        drawn = [name for name, part, _ in parts if not part.shared and part.kind != "plain"]
        what = f"; what differs: {_named(drawn)}" if drawn else ""
        yield Finding(
            "unseeded",
            f"seed {seed}, trained twice, is not the same run ({where}){what}: {DRAWN[runs.kind]}",
        )


# --- a pause ---


def _pause(runs: Runs) -> Iterator[Finding]:
    """Look for what begins anew where a run goes on after a pause."""
    if runs.kind == "loop" and not runs.first.can_pause:
        if runs.prunes:
            yield Finding(
                "no restore",
                "run.restore() is never called, so that no run can pause and nothing is pruned: write "
                'run.restore(model=model, optimizer=optimizer) before the loop, or pruner = "none" in '
                "[search]",
            )
        return
    if runs.paused is None:
        return
    parts = [*differing(runs.first.at_start.get(2), runs.paused.at_start.get(2))]
    anew = [found for name, one, other in parts if (found := _begins_anew(name, one, other))]
    yield from anew
    where = first_difference(runs.first, runs.paused, runs.rounding)
    if where is None or anew:
        return
    kept = ("plain", "array", "container")
    lasting = [name for name, part, _ in parts if part.kind in kept and part.lasts and not part.shared]
    if lasting:
        where = f"{where}; what differs: {_named(lasting)}"
    if runs.kind == "command":
        yield Finding(
            "pause",
            f"a run that is ended after epoch 1 and started again is another one ({where}): let its "
            "checkpoint hold all that changes (optimizer, scheduler, scaler, random states), or keep none",
        )
    elif runs.kind == "task":
        yield Finding(
            "pause",
            f"a run that pauses after epoch 1 is another one ({where}): keep what changes from batch to "
            "batch in the model, as buffers, and nothing in what makes the loss or the batches",
        )
    else:
        yield Finding(
            "pause",
            f"a run that pauses after epoch 1 is another one ({where}): give run.restore all that changes "
            "while you train (optimizer, scheduler, scaler, generators), and plain numbers to run.state",
        )


def _begins_anew(name: str, one: Part, other: Part) -> Finding | None:
    """Return what to do about a part that has another content after a pause; None if it does no harm."""
    if one.shared and one.kind in ("array", "plain"):
        return None  # another run of this process may have changed it
    short = name.partition(" of ")[0].rpartition(".")[2].partition("[")[0]
    again = f"{name} begins anew after a pause"
    if one.kind == "state":
        return Finding("pause", f"{again} ({one.shown}): write run.restore(..., {short}={name})")
    if one.kind == "generator" and one.restorable:
        return Finding("pause", f"{again} (a torch.Generator): write run.restore(..., {short}={name})")
    if one.kind == "generator":
        return Finding(
            "pause",
            f"{again} ({one.shown}): draw from a torch.Generator that is given to run.restore, or make it "
            "anew in each epoch, from run.seed and the epoch",
        )
    if one.kind == "plain" and one.decides:
        return Finding(
            "pause",
            f"{again} ({one.shown} before, {other.shown} after it): keep it in run.state, as "
            f'run.state["{short}"], which is saved with the run',
        )
    return None


# --- seeds and levels ---


def _seed(runs: Runs) -> Iterator[Finding]:
    if runs.other is None or not (shared := shared_numbers(runs.first, runs.other)):
        return
    varies = runs.far is not None and first_difference(runs.first, runs.far) is not None
    if weight(shared) < PROOF and not (runs.kind != "loop" and varies and len(shared) > 1):
        return
    gave = f"seed {runs.first.key.seed} and seed {runs.other.key.seed} gave the same run, to the last digit"
    how = "seed what the loop draws by run.seed, not by a number of its own as in torch.manual_seed(42)"
    yield Finding(
        "seed not used", f"{gave}: {how if runs.kind == 'loop' else DRAWN[runs.kind]}, or write seeds = 1"
    )


def _level(runs: Runs, *, compare: bool) -> Iterator[Finding]:
    """Look for a level that is not used, or for more than the loss."""
    far = runs.far
    if far is None or (not far.shown and not far.losses):
        return
    level = far.key.level
    if compare and (where := first_losses(runs.first, far, runs.rounding)) is not None:
        yield Finding(
            "not only flooded",
            f"seed {far.key.seed} begins otherwise at level {level:g} than at level 0 ({where}): let the "
            "level change nothing but the loss, by run.flood",
        )
        return
    if first_difference(runs.first, far) is not None or far.diverged:
        return
    same = f"level {level:g}, far above the loss, gave the run of level 0, to the last digit"
    if runs.kind != "loop":
        varies = runs.other is not None and first_difference(runs.first, runs.other) is not None
        shared = shared_numbers(runs.first, far)
        if weight(shared) >= PROOF or (varies and len(shared) > 1):
            yield Finding(
                "level not used",
                f"{same}: let the command flood its loss at {{level}}, as (loss - level).abs() + level",
            )
    elif not far.losses:
        yield Finding(
            "level not used",
            f"{same}, and run.flood() was not called: write loss = run.flood(criterion(model(x), y))",
        )
    elif weight(shared_numbers(runs.first, far)) >= PROOF:
        yield Finding(
            "level not used",
            f"{same}, {DROPPED}",
        )


# --- what is reported ---


def _evaluation(runs: Runs) -> Iterator[Finding]:
    """Look for reported losses that are flooded: these are above the level, and the loss is far below it."""
    far = runs.far
    if far is None:
        return
    level = far.key.level
    for record in far.records:
        losses = numbers(far, record.epoch)
        plain = [value for name, value in losses.items() if name.startswith("the loss of batch")]
        if plain and max(plain) > level / 2:
            return  # the model may have come there
        flooded = [
            name
            for name in ("train_loss", "val_loss", "test_loss")
            if (value := getattr(record, name)) is not None
            and level * (1 if plain else 1.5) < value <= 2 * level
        ]
        if flooded:
            mend = (
                "evaluate with the plain loss"
                if flooded != ["train_loss"]
                else "report the plain loss, or leave it out: it is known from run.flood"
            )
            yield Finding(
                "evaluation flooded",
                f"{' and '.join(flooded)} {'is' if len(flooded) == 1 else 'are'} flooded "
                f"({getattr(record, flooded[-1]):.4g} at level {level:g}): {mend}",
            )
            return


def _metrics(runs: Runs) -> Iterator[Finding]:
    """Look for metrics of no sane scale, and for one that never changes."""
    every = [runs.first, *(one for one in (runs.other, runs.far) if one is not None)]
    records = [record for one in every for record in one.records]
    for name in (name for name in REPORTED if name.endswith("accuracy")):
        values = [value for one in records if (value := getattr(one, name)) is not None]
        if values and max(values) > 1:
            yield Finding(
                "percentage",
                f"{name} is {max(values):.4g}, but a share is at most 1: report {name} / 100, or / the "
                "number of samples",
            )
        elif values and min(values) < 0:
            yield Finding("negative", f"{name} is {min(values):.4g}, but a share is at least 0")
    field = runs.metric if runs.metric in REPORTED else "metric"
    values = [value for one in records if (value := getattr(one, field)) is not None]
    seen = [one for one in every if any(getattr(record, field) is not None for record in one.records)]
    parted = all(
        one is not None and first_difference(runs.first, one) is not None for one in (runs.other, runs.far)
    )
    if len(seen) == 3 and parted and len(values) >= FEWEST_VALUES and len(set(values)) == 1:
        yield Finding(
            "constant",
            f"{runs.metric} is {values[0]:.6g} in all runs and epochs, whatever is trained: compute it from "
            "the model, after each epoch",
        )
    # Where no epoch was validated nothing tells.
    if runs.from_pilot and values and all(one.val_loss is None for one in records):
        yield Finding(
            "no val_loss",
            'levels.high = "auto" is found from val_loss, which is not reported: report it, or give '
            "levels.high as a number",
        )
    if any(value is not None and not math.isfinite(value) for value in values):
        yield Finding("not finite", f"{runs.metric} is not finite")


def _files(runs: Runs) -> Iterator[Finding]:
    """Look for files that two runs both write."""
    levels = runs.first.wrote & runs.far.wrote if runs.far is not None else frozenset()
    seeds = runs.first.wrote & runs.other.wrote if runs.other is not None else frozenset()
    for by, names in (
        ("level and seed", levels & seeds),
        ("level", levels - seeds),
        ("seed", seeds - levels),
    ):
        if not names:
            continue
        if runs.kind == "command":
            put = " and ".join(f"{{{one}}}" for one in by.split(" and "))
            mend = f"put {put} into its name, by an argument of the command"
        else:
            mend = "put run.name into its name, which is each run's own"
        are = "is" if len(names) == 1 else "are"
        yield Finding(
            "same file",
            f"{_named(sorted(names))} {are} written by runs of any {by}, one over the other: {mend}",
        )
