"""The words for what was found: sentences and numbers, the same in a terminal, on a page and in a note."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from floodsearch.findings import BestLevel, Combination, TicketCounts
from floodsearch.records import Parameter

MOST_NAMED = 8
"""Levels that are listed one by one; more are told by their range."""


def headline(best: BestLevel) -> str:
    """Return the first line of an answer: the study, its best level, and what is to be known before that."""
    beside = "".join(f", {name} = {setting(value)}" for name, value in best.parameters.items())
    done = best.trials.total - best.trials.unfinished
    provisional = "" if best.finished else f" (provisional: {done} of {best.trials.total} tickets are done)"
    if not best.tried and best.baseline is not None:
        return f"{best.study}: {_alone(best)}{beside}{provisional}"
    if best.failed:
        found = f"{best.level:g} is the best level above 0{_interval(best)}{beside}"
        return f"{best.study}: no answer: {best.no_baseline}; {found}"
    found = f"the best flood level is {best.level:g}{_interval(best)}{beside}"
    return f"{best.study}: {found}{provisional}{_early_stopping(best)}"


def _alone(best: BestLevel) -> str:
    """Return the reason for which nothing can be compared with level 0."""
    if best.never_flooded:
        return f"no level up to {best.never_flooded[-1]:g} ever flooded, so each of them is level 0"
    others = ", ".join(part for part in _occurring(best.trials) if not part.endswith("complete"))
    why = best.stopped or (f"of the others {others}" if others and best.finished else "")
    return "only level 0 was trained to its end" + (f": {why}" if why else "")


def not_searched(best: BestLevel) -> str:
    """Return the tickets that a study closed early has left out; empty where the headline says it."""
    if best.stopped is None or not best.trials.unfinished or not best.tried:
        return ""
    tickets = "ticket" if best.trials.unfinished == 1 else "tickets"
    return f"{best.trials.unfinished} {tickets}: {best.stopped}"


def _early_stopping(best: BestLevel) -> str:
    """Return that stopping early without flooding is as good, where it is."""
    found = best.early_stopping
    if found is None or not found.as_good:
        return ""
    name = found.measure.replace("_", " ")
    numbers = f"{found.unflooded:.4f}, with flooding {found.at_end:.4f}, with both {found.stopped:.4f}"
    return f", but early stopping without flooding is at least as good: {name} {numbers}"


def _interval(best: BestLevel) -> str:
    """Return the interval of the best level in brackets; empty where none is known."""
    if best.interval is None:
        return ""
    low, high = best.interval
    if best.highest is None:
        return f" ({low:g} to {high:g} with 90 %)"
    return f" (each run found its own: {low:g} to {high:g}, of at most {best.highest:g})"


def gain(best: BestLevel) -> str:
    """Return the gain over level 0 with its interval, and the verdict."""
    if best.gain is None:
        return f"not known: {best.no_baseline}"
    if not best.tried:
        return ""  # the first line says so
    if best.seeds == 1:
        if best.level == 0 and not best.gain:
            return "none on this seed; one seed cannot show whether flooding helps"
        return f"{best.gain:+.4f} on the seed that chose the level, which flatters; its error is not known"
    found = f"flooding {best.verdict}" if best.verdict in ("helps", "hurts") else "not shown to help"
    if best.verdict != "helps" and best.highest is None:
        found += f", at the {_levels_tried(best.tried)}"
    if best.level == 0 and not best.gain:
        return f"none: no level was better than no flooding; {found}"
    low, high = best.gain_interval or (best.gain, best.gain)
    p_value = "" if best.p_value is None else f", p = {best.p_value:.2g}"
    return f"{best.gain:+.4f} ({low:+.4f} to {high:+.4f} with 90 %; {best.seeds} seeds{p_value}): {found}"


def _levels_tried(tried: Sequence[float]) -> str:
    """Return the range of the levels that were compared."""
    if len(tried) == 1:
        return f"level tried: {tried[0]:g}"
    return f"levels tried: {tried[0]:g} to {tried[-1]:g}"


def never_flooded(best: BestLevel) -> str:
    """Return the levels that never flooded, and the advice that follows; empty if all did."""
    never = best.never_flooded
    if not never:
        return ""
    levels = (
        f"levels up to {never[-1]:g}"
        if never[-1] < min(best.tried, default=math.inf)
        else _list_levels(never)
    )
    if len(never) <= len(best.tried):
        return f"{levels}: they are level 0"
    most = "most" if best.tried else "all"
    return (
        f"{levels}, {most} of those trained: they are level 0; search higher ones, or train for more epochs"
    )


def _list_levels(levels: Sequence[float]) -> str:
    """Return levels one by one, many by their range."""
    if len(levels) > MOST_NAMED:
        return f"{len(levels)} levels between {levels[0]:g} and {levels[-1]:g}"
    return ", ".join(f"{level:g}" for level in levels)


def more_seeds(best: BestLevel) -> str:
    """Return the number of seeds that would decide a verdict which is "not shown"; empty with another."""
    if not best.tried:
        return ""
    if best.seeds == 1:
        return "one seed has no error to judge a gain by; five or more have"
    if best.verdict != "not shown":
        return ""
    if best.more_seeds is None:
        return "the gain is too small for any reasonable number of seeds"
    seeds = "seed" if best.more_seeds == 1 else "seeds"
    return f"about {best.more_seeds} more {seeds} would show whether it helps"


def tied(best: BestLevel) -> str:
    """Return the levels that cannot be told apart from the best; empty where no levels were compared."""
    if best.highest is not None:
        return ""  # the runs compared their own levels
    if not best.tried:
        return ""
    if best.tied is None:
        return "not known: too few levels to see their noise"
    return _list_levels(best.tied) or "none"


def combination(one: Combination) -> str:
    """Return the best level of one combination of the parameters beside it, and its gain."""
    gain = "" if one.gain is None else f", gain {one.gain:+.4f}"
    spread = "" if one.gain_se is None else f" ± {one.gain_se:.4f}"
    return f"level {one.level:g}: {versus(one.value, None, one.baseline)}{gain}{spread}"


def settings(one: Combination) -> str:
    """Return the parameters of a combination."""
    return ", ".join(f"{name} = {setting(value)}" for name, value in one.parameters.items())


def setting(value: Parameter) -> str:
    """Return the value of one parameter."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def versus(value: float | None, se: float | None, baseline: float | None) -> str:
    """Return a value with its standard error, beside that of level 0; empty where it is not known."""
    if value is None:
        return ""
    spread = "" if se is None else f" ± {se:.4f}"
    return number(value) + spread + ("" if baseline is None else f" (level 0: {number(baseline)})")


def number(value: float | None) -> str:
    """Return a value of a metric; empty where it is not known."""
    return "" if value is None else f"{value:.4f}"


def counts(counts: TicketCounts) -> str:
    """Return the states that occur, with their numbers."""
    return ", ".join(_occurring(counts)) or "none"


def _occurring(counts: TicketCounts) -> Iterator[str]:
    """Yield each state that occurs, with its number of tickets."""
    for state in ("complete", "pruned", "failed", "running", "waiting"):
        if number := getattr(counts, state):
            yield f"{number} {state}"


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
