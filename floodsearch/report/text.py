"""Records as text for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from floodsearch.cost.forecast import Timed
from floodsearch.cost.outlook import Outlook
from floodsearch.findings import BestLevel, StudyStatus, TicketNote, WorkerStatus
from floodsearch.process.terminal import one_line
from floodsearch.records import BY_HAND, Keep, Pilot
from floodsearch.report import words
from floodsearch.report.words import MOST_NAMED, counts, duration, number, versus
from floodsearch.study.spec import Spec
from floodsearch.tryout.result import Report

ENDED = ("pruned", "failed")
"""States in which a ticket stays without a value at its end."""
SILENT_SECONDS = 15.0
"""Without a sign of life, of which one comes every five seconds, after which a worker is told as silent."""


def best_text(best: BestLevel) -> str:
    """Return the answer in a few lines; the last one is to be pasted into a training loop."""
    best = one_line(best)
    plain = best.baseline
    rows = [
        (best.metric, versus(best.value, best.value_se, plain.value if plain else None)),
        ("gain over level 0", words.gain(best)),
        ("not decided", words.more_seeds(best)),
        ("tied with", words.tied(best)),
        ("never flooded", words.never_flooded(best)),
        ("test accuracy", versus(best.test_accuracy, None, plain.test_accuracy if plain else None)),
        (
            "with early stopping",
            versus(best.best_epoch_test_accuracy, None, plain.best_epoch_test_accuracy if plain else None),
        ),
        ("test loss", versus(best.test_loss, None, plain.test_loss if plain else None)),
        ("training accuracy", number(best.train_accuracy)),
        ("tickets", counts(best.trials)),
        ("not searched", words.not_searched(best)),
        ("epochs", f"{best.epochs_run:,} of {best.epochs_exhaustive or 0:,} for an exhaustive search"),
        ("changed", best.changed),
        *_combinations(best),
        *(("warning", warning) for warning in best.warnings),
    ]
    rows = [(name, text) for name, text in rows if text]
    width = max(len(name) for name, _ in rows)
    table = (f"  {name:<{width}}  {text}" for name, text in rows)
    return "\n".join([words.headline(best), *table, "", f"  {paste_line(best)}"])


def paste_line(best: BestLevel) -> str:
    """Return the line of code that floods a loss at the best level."""
    if best.level == 0:
        return "loss = loss  # level 0: no flooding"
    if best.highest is not None:
        return f"loss = (loss - {best.level:g}).abs() + {best.level:g}  # the median of the levels found"
    return f"loss = (loss - {best.level:g}).abs() + {best.level:g}"


def weights_text(best: BestLevel, keep: Keep, copied: Sequence[Path]) -> str:
    """Return the files to which the weights of the answer were copied, under a line that names the answer."""
    best, paths = one_line(best), one_line(list(map(str, copied)))
    beside = "".join(f", {name} = {value}" for name, value in best.parameters.items())
    level = f"level {best.level:g}{beside}" + (" (no flooding)" if best.level == 0 else "")
    epoch = "best validation" if keep == "best" else "last epoch"
    so_far = "" if best.finished else "; provisional, the search goes on"
    return "\n".join(
        [f"{best.study}: weights of {level}, {epoch} of each seed{so_far}", *(f"  {path}" for path in paths)]
    )


def status_text(status: StudyStatus) -> str:
    """Return the status of a study in a few lines."""
    status = one_line(status)
    state = status.stopped or ("finished" if status.finished else f"{status.workers} workers alive")
    if status.finished and not status.trials.unfinished:
        state = "finished"  # the budget may be spent as well, but nothing is left of it
    lines = [f"{status.name}: {state}", f"  tickets   {counts(status.trials)}"]
    if status.answer is not None:
        lines.append(f"  best      level {status.answer:g}, {status.metric} {number(status.answer_value)}")
    elif status.best_level is not None:
        value = f"{status.metric} {number(status.best_value)}"
        lines.append(f"  best      level {status.best_level:g}, {value}, as a single ticket")
    lines.append(f"  epochs    {epochs_text(status)}")
    if not status.finished and (status.stage is not None or status.piloting):
        lines.append(f"  stage     {stage_text(status)}")
    if status.seconds_left is not None:
        lines.append(f"  time left about {duration(status.seconds_left)}")
    if status.pilot is not None:
        lines.append(f"  pilot     {pilot_text(status.pilot)}")
    if status.interruptions:
        told = ", ".join(f"{count} x {cause}" for cause, count in status.interruptions.items())
        lines.append(f"  trials    interrupted: {told}")
    if len(status.revisions) > 1:
        lines.append(f"  code      changed while it was searched: {', then '.join(status.revisions)}")
    if status.changed is not None:
        lines.append(f"  changed   {status.changed}")
    lines += [f"  warning   {warning}" for warning in status.warnings]
    wrong = ("diverged", "error", BY_HAND)
    failed = [one for one in status.notes if one.cause in wrong and one.state in ENDED]
    return "\n".join([*lines, *(f"  {_note_line(one)}" for one in failed)])


def notes_text(status: StudyStatus) -> str:
    """Return the reasons for which tickets were pruned, a line a rung, and taken up again, a line each."""
    status = one_line(status)
    by_epoch: dict[int, list[TicketNote]] = {}
    again = []
    for note in status.notes:
        if note.cause == "pruned":
            by_epoch.setdefault(note.epoch, []).append(note)
        elif note.state not in ENDED and note.reason is not None:
            again.append(note)
    pruned = [_pruned_line(epoch, notes) for epoch, notes in sorted(by_epoch.items())]
    return "\n".join(f"  {line}" for line in [*pruned, *map(_note_line, again)])


def failures_text(status: StudyStatus) -> str:
    """Return the tickets that failed for good with their reasons, in one line; empty if none did."""
    status = one_line(status)
    reasons: dict[str, list[TicketNote]] = {}
    for note in status.notes:
        if note.state == "failed" and note.reason is not None:
            reasons.setdefault(note.reason, []).append(note)
    told = []
    for reason, notes in reasons.items():
        tickets = f"ticket {notes[0].ticket}" if len(notes) == 1 else f"{len(notes)} tickets"
        told.append(f"{tickets} failed with {reason}")
    return "; ".join(told)


def _pruned_line(epoch: int, notes: Sequence[TicketNote]) -> str:
    """Return a line for the tickets that were pruned at one epoch; with the reason, if it is a single one."""
    if len(notes) == 1:
        return _note_line(notes[0])
    levels = sorted({note.level for note in notes if note.level is not None})
    named = ", ".join(f"{level:g}" for level in levels[:MOST_NAMED])
    more = ", ..." if len(levels) > MOST_NAMED else ""
    when = f"at epoch {epoch}" if epoch else "before the first epoch"
    return f"pruned {when}: {len(notes)} tickets, level {named}{more}"


def _note_line(note: TicketNote) -> str:
    """Return a line with the end of a ticket, or its state after an interruption, and the reason."""
    level = "open level" if note.level is None else f"level {note.level:g}"
    attempt = "" if note.attempts == 1 else f" in attempt {note.attempts}"
    if note.cause == "pruned":
        return f"ticket {note.ticket}, {level}: {note.reason}"  # which begins with the word
    if note.state in ENDED:
        return f"ticket {note.ticket}, {level}: {note.cause}{attempt}, {note.reason}"
    return f"ticket {note.ticket}, {level}: {note.state}{attempt}, after: {note.reason}"


def progress_text(status: StudyStatus) -> str:
    """Return the status of a study in one line."""
    return " · ".join(filter(None, (stage_text(status), time_text(status), found_text(status))))


def stage_text(status: StudyStatus) -> str:
    """Return the epochs and the number of levels in training now, and the share of the expected epochs."""
    status = one_line(status)
    if status.piloting:
        return f"pilot: looking for the highest level · {status.epochs_run:,} epochs"
    parts = []
    if (stage := status.stage) is not None:
        levels = "1 level" if stage.tickets == 1 else f"{stage.tickets} levels"
        parts.append(f"epochs {stage.after + 1:,} to {stage.until:,}, {levels} alive")
    if (status.epochs_expected or 0) > status.epochs_run:
        parts.append(f"{status.epochs_run:,} of about {status.epochs_expected:,} epochs")
    else:
        parts.append(f"epochs {epochs_text(status)}")
    return " · ".join(parts)


def time_text(status: StudyStatus) -> str:
    """Return the time that a study still takes; empty where that is not known."""
    return "" if status.seconds_left is None else f"about {duration(status.seconds_left)} left"


def found_text(status: StudyStatus) -> str:
    """Return the states of a study's tickets and the best of them, in one line; empty without any."""
    status = one_line(status)
    if status.piloting:
        return ""
    if status.best_level is None:
        return counts(status.trials)
    value = f"{status.metric} {number(status.best_value)}"
    return f"{counts(status.trials)} · best single ticket {status.best_level:g} ({value})"


def share_done(status: StudyStatus) -> float | None:
    """Return the share of the expected epochs that were run, in [0, 1]; None while that is not known."""
    if status.finished:
        return 1.0
    if not status.epochs_expected:
        return None
    return status.epochs_run / status.epochs_expected


def crew_lines(status: StudyStatus) -> list[str]:
    """Return a line for each worker that is alive: where it is, what it trains, and since when."""
    status = one_line(status)
    hosts = {one.host for one in status.crew}
    lines = [_worker_line(one, status, where=len(hosts) > 1) for one in status.crew[:MOST_NAMED]]
    more = len(status.crew) - len(lines)
    return [*lines, f"and {more} more workers"] if more > 0 else lines


def _worker_line(one: WorkerStatus, status: StudyStatus, *, where: bool) -> str:
    """Return the line of a worker; `where` names its machine too."""
    does = "waits for work"
    if one.levels:
        seeds = "1 seed" if one.seeds == 1 else f"{one.seeds} seeds"
        low, high = one.levels[0], one.levels[-1]
        levels = f"level {low:g}"
        if len(one.levels) > 1:
            levels = f"{len(one.levels)} levels, {low:g} to {high:g}"
        does = f"{levels}, {seeds}"
    elif status.piloting and one.epochs_run > 0:
        does = "looks for the highest level"
    place = f"{one.host} {one.device}" if where else one.device
    parts = [
        f"worker {one.worker}",
        place,
        does,
        f"{one.epochs_run:,} epochs in {duration(one.seconds)}",
    ]
    if one.silent_seconds > SILENT_SECONDS:
        parts.append(f"silent for {duration(one.silent_seconds)}")
    return " · ".join(parts)


def epochs_text(status: StudyStatus) -> str:
    """Return the epochs run, of how many, and how many were saved in a finished study."""
    if status.epochs_exhaustive is None:
        return f"{status.epochs_run:,}"
    text = f"{status.epochs_run:,} of {status.epochs_exhaustive:,}"
    saved = status.epochs_exhaustive - status.epochs_run
    # While workers are alive their last epochs may not be counted yet.
    counted = status.finished and status.workers == 0
    return f"{text}, {saved:,} saved" if counted and saved > 0 else text


def pilot_text(pilot: Pilot) -> str:
    """Return the lowest losses of the pilot and the highest level that follows, in one line."""
    losses = f"{min(pilot.minima):.4g}"
    if max(pilot.minima) > min(pilot.minima):
        losses += f" to {max(pilot.minima):.4g}"
    return f"lowest validation loss {losses} in {pilot.epochs} epochs: levels up to {pilot.high:g}"


def spec_text(spec: Spec) -> str:
    """Return all settings of a study, a line each, as `table.name = value`."""
    settings = _flatten(spec.model_dump(mode="json"))
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree of tables, each with its names from the root, joined by dots."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def outlook_text(spec: Spec, outlook: Outlook) -> str:
    """Return the epochs of an exhaustive search, those that are expected with their range, and their time."""
    seeds, epochs = len(spec.training.seeds), spec.training.epochs
    every, expected = outlook.epochs_exhaustive, outlook.epochs_expected
    if every is None or expected is None:
        return f"a ticket for each level that the pilot finds x {seeds} seeds x {epochs} epochs"
    text = (
        f"{outlook.tickets} tickets x {seeds} seeds x {epochs} epochs = {every:,} epochs, all to their ends"
    )
    text += f"; about {expected:,} with the pruner {spec.search.pruner!r}"
    least, most = outlook.epochs_least, outlook.epochs_most
    if least is not None and most is not None and least < most:
        text += f", {least:,} to {most:,} by when levels begin to flood"
    if outlook.seconds is not None:
        text += f"; {duration(outlook.seconds)} with one worker"
    lines = [text, *_stages(outlook.stages)]
    if outlook.epochs_tried:
        lines.append(f"told from {outlook.epochs_tried:,} epochs without flooding, trained just now")
    return "\n".join(lines)


def try_text(tried: Report) -> str:
    """Return what a try of a study's code has come to: a line for each finding, then how long a search is."""
    tried = one_line(tried)
    lines = [f"wrong: {one.text}" for one in tried.findings]
    lines += [f"not tried: {one}" for one in tried.not_tried]
    if tried.epoch is None:
        return "\n".join(lines)
    text = f"tried: {tried.runs} runs in {duration(tried.seconds)}; an epoch takes {_seconds(tried.epoch)}"
    if tried.seconds_expected is not None and tried.seconds_exhaustive is not None:
        text += f", the search about {duration(tried.seconds_expected)} with one worker"
        if tried.seconds_expected < tried.seconds_exhaustive:
            text += f", {duration(tried.seconds_exhaustive)} without pauses"
    return "\n".join([*lines, text])


def _seconds(seconds: float) -> str:
    """Return a short time in seconds, which `duration` rounds away."""
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _stages(timed: Sequence[Timed]) -> Iterator[str]:
    """Yield a table of stages with their sums."""
    if not timed:
        return
    yield f"{'epochs':>11}  {'runs':>5}  {'trained':>9}  {'samples':>15}  {'a second':>11}  time"
    for stage, samples, speed in timed:
        epochs = f"{stage.after + 1}-{stage.until}"
        yield (
            f"{epochs:>11}  {stage.runs:>5}  {stage.epochs:>9,}  {samples:>15,}  {speed:>11,.0f}  "
            f"{duration(samples / speed)}"
        )
    trained, samples = sum(one.stage.epochs for one in timed), sum(one.samples for one in timed)
    yield f"{'in all':>11}  {'':>5}  {trained:>9,}  {samples:>15,}"
    yield "a forecast; validation and the start come on top"


def _combinations(best: BestLevel) -> Iterator[tuple[str, str]]:
    """Yield a row for each combination of the parameters beside the level; of many, for the best."""
    shown = best.combinations
    if len(shown) > MOST_NAMED:
        yield "best by gain", f"{MOST_NAMED} of {len(shown)} combinations; --json has all"
        shown = tuple(sorted(shown, key=lambda one: -math.inf if one.gain is None else one.gain))[
            : -MOST_NAMED - 1 : -1
        ]
    for one in shown:
        yield words.settings(one), words.combination(one)
