"""What a try has come to, as frozen records; without torch, as others only show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that is wrong with a user's code."""

    kind: str
    """A few words, the same for all findings of a kind."""
    text: str
    """What is wrong and what to write instead, in one line."""


@dataclass(frozen=True)
class Report:
    """What a try has come to.

    Args:
        findings: what is wrong.
        not_tried: what was not looked at, and why; a line each.
        runs: how many runs were trained, each for at most two epochs.
        seconds: that the try took.
        epoch: seconds of an epoch; None if none ended.
        seconds_expected: of the search with one worker, at this pace; None where its epochs are not known.
        seconds_exhaustive: of a search without pauses, in which every run goes to its end; None likewise.
    """

    findings: tuple[Finding, ...]
    not_tried: tuple[str, ...]
    runs: int
    seconds: float
    epoch: float | None
    seconds_expected: float | None
    seconds_exhaustive: float | None
