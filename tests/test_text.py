"""report.text: records as text for a terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from floodsearch.findings import (
    Baseline,
    BestLevel,
    Combination,
    StudyStage,
    StudyStatus,
    TicketCounts,
    TicketNote,
    WorkerStatus,
)
from floodsearch.report.text import (
    best_text,
    crew_lines,
    failures_text,
    notes_text,
    paste_line,
    progress_text,
    share_done,
    stage_text,
    status_text,
)

FOUND = BestLevel(
    study="two-gaussians-10",
    level=0.29,
    highest=None,
    parameters={},
    trial=12,
    interval=(0.24, 0.34),
    tied=(0.24, 0.26, 0.34),
    metric="val_accuracy",
    value=0.834,
    value_se=0.012,
    seeds=8,
    test_accuracy=0.82,
    test_accuracy_clean=None,
    test_loss=0.5,
    best_epoch_test_accuracy=None,
    best_epoch_test_loss=None,
    train_accuracy=0.9,
    baseline=Baseline(
        value=0.773,
        value_se=0.02,
        test_accuracy=0.744,
        test_accuracy_clean=None,
        test_loss=2.0,
        best_epoch_test_accuracy=None,
        best_epoch_test_loss=None,
    ),
    no_baseline=None,
    tried=(0.02, 0.24, 0.26, 0.29, 0.34, 0.5),
    never_flooded=None,
    early_stopping=None,
    gain=0.061,
    gain_se=0.01,
    gain_interval=(0.04, 0.08),
    p_value=0.004,
    verdict="helps",
    more_seeds=None,
    combinations=(),
    trials=TicketCounts(complete=2, pruned=49),
    epochs_run=9000,
    epochs_exhaustive=127500,
    cost=0.07,
    finished=True,
    stopped=None,
)
NOTHING = replace(FOUND, level=0.0, gain=0.0, gain_se=0.0, gain_interval=None, p_value=None)


def test_the_answer_in_a_few_lines():
    """Level, interval, ties, gain, evidence and verdict are said; the last line is to be pasted."""
    lines = best_text(FOUND).splitlines()
    assert lines[0] == "two-gaussians-10: the best flood level is 0.29 (0.24 to 0.34 with 90 %)"
    assert (
        "  gain over level 0  +0.0610 (+0.0400 to +0.0800 with 90 %; 8 seeds, p = 0.004): flooding helps"
        in lines
    )
    assert "  tied with          0.24, 0.26, 0.34" in lines
    assert lines[-1].strip() == "loss = (loss - 0.29).abs() + 0.29"
    assert "not decided" not in best_text(FOUND)
    assert "None" not in best_text(FOUND)


def test_many_ties_are_told_by_their_range():
    """A flat curve does not print every level."""
    tied = tuple(round(0.02 * index, 2) for index in range(1, 20))
    assert "19 levels between 0.02 and 0.38" in best_text(replace(FOUND, tied=tied))


def test_one_seed_says_what_it_cannot_know():
    """With one seed no error is invented, and the answer says so."""
    one = replace(
        FOUND, seeds=1, value_se=None, gain_se=None, gain_interval=None, p_value=None, verdict=None, tied=None
    )
    text = best_text(replace(one, interval=None))
    assert "its error is not known" in text
    assert "one seed" in text
    assert "None" not in text
    assert "none on this seed" in best_text(replace(one, level=0.0, gain=0.0))


@pytest.mark.parametrize(
    ("verdict", "more", "said"),
    [
        ("not shown", 7, "about 7 more seeds"),
        ("not shown", 1, "about 1 more seed would"),
        ("not shown", None, "too small for any reasonable number of seeds"),
        ("hurts", None, "flooding hurts"),
    ],
)
def test_what_is_not_decided_is_said(verdict, more, said):
    """A gain that is not shown comes with how many more seeds would show it."""
    assert said in best_text(replace(FOUND, verdict=verdict, more_seeds=more, p_value=None))


def test_no_flooding_can_be_the_answer():
    """At level 0 the text says that no level was better, and what is pasted changes nothing."""
    text = best_text(replace(NOTHING, verdict="hurts"))
    assert (
        "none: no level was better than no flooding; flooding hurts, at the levels tried: 0.02 to 0.5" in text
    )
    assert paste_line(NOTHING).startswith("loss = loss")
    assert "not shown to help" in best_text(replace(NOTHING, verdict="not shown", more_seeds=3))


def test_levels_that_the_runs_found_are_told_as_such():
    """Where each run finds its level, the range is not one of 90 %, and nothing is said of ties."""
    lines = best_text(replace(FOUND, highest=0.5, tied=None)).splitlines()
    assert lines[0].endswith("is 0.29 (each run found its own: 0.24 to 0.34, of at most 0.5)")
    assert not any("tied" in line for line in lines)
    assert lines[-1].strip() == "loss = (loss - 0.29).abs() + 0.29  # the median of the levels found"
    alone = best_text(replace(FOUND, highest=0.5, tied=None, interval=None)).splitlines()[0]
    assert alone == "two-gaussians-10: the best flood level is 0.29"


def test_runs_that_came_back_to_level_zero_have_their_gain():
    """A gain of runs that ended at level 0 is said, although there is no level to paste."""
    text = best_text(replace(FOUND, highest=0.5, tied=None, level=0.0))
    assert "+0.0610" in text
    assert "no level was better" not in text
    assert paste_line(replace(FOUND, level=0.0)).startswith("loss = loss")


def test_each_combination_has_a_line():
    """What was searched beside the level is listed, with the best level and gain of each."""
    entry = Combination(
        parameters={"weight_decay": 0.1}, level=0.2, value=0.8, baseline=0.7, gain=0.1, gain_se=0.02
    )
    text = best_text(replace(FOUND, parameters=entry.parameters, combinations=(entry,)))
    assert "weight_decay = 0.1" in text.splitlines()[0]
    assert "level 0.2: 0.8000 (level 0: 0.7000), gain +0.1000 ± 0.0200" in text


def test_of_many_combinations_the_best_are_listed():
    """With settings from a range each ticket is one: the text has the eight with the largest gains."""
    many = tuple(
        Combination(
            parameters={"alpha": n / 1000},
            level=0.2,
            value=0.8,
            baseline=0.7,
            gain=n / 100 or None,
            gain_se=None,
        )
        for n in range(12)
    )
    text = best_text(replace(FOUND, combinations=many))
    assert "8 of 12 combinations" in text
    assert [line.split()[2] for line in text.splitlines() if line.startswith("  alpha")] == [
        f"{n / 1000:g}" for n in range(11, 3, -1)
    ]


def test_before_the_search_is_over_the_answer_is_provisional():
    """The headline says how much is done."""
    text = best_text(replace(FOUND, finished=False, trials=TicketCounts(complete=2, waiting=3)))
    assert "(provisional: 2 of 5 tickets are done)" in text


# --- where a study stands ---------------------------------------------------------------------------------


def note(ticket: int, **fields: object) -> TicketNote:
    known = {"state": "pruned", "cause": "pruned", "epoch": 15, "attempts": 1, "reason": f"why {ticket}"}
    return TicketNote(**{"ticket": ticket, "level": ticket / 100, **known, **fields})


STANDS = StudyStatus(
    name="tiny",
    metric="val_accuracy",
    trials=TicketCounts(complete=2, pruned=9),
    workers=0,
    best_level=0.31,
    best_value=0.9,
    answer=None,
    answer_value=None,
    epochs_run=10,
    epochs_exhaustive=100,
    pilot=None,
    piloting=False,
    seconds_left=None,
    finished=True,
    stopped=None,
)


def test_the_luckiest_ticket_is_not_told_as_the_answer():
    """Without the curves the status has a single ticket, and says so; with them it has the answer."""
    assert "level 0.31, val_accuracy 0.9000, as a single ticket" in status_text(STANDS)
    assert "best single ticket 0.31" in progress_text(STANDS)
    answered = status_text(replace(STANDS, answer=0.29, answer_value=0.8))
    assert "  best      level 0.29, val_accuracy 0.8000" in answered.splitlines()
    assert "0.31" not in answered


def test_pruned_tickets_are_told_by_rung():
    """Many of one rung share a line with the first levels; one alone has its reason in full."""
    many = [note(ticket) for ticket in range(12, 0, -1)]
    lines = notes_text(replace(STANDS, notes=(*many, note(40, epoch=30)))).splitlines()
    assert lines == [
        "  pruned at epoch 15: 12 tickets, level 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, ...",
        "  ticket 40, level 0.4: why 40",
    ]


def test_what_diverged_failed_or_was_taken_up_again_is_told():
    """Ends without a value are always told; attempts with why there was another; growth is no reason."""
    status = replace(
        STANDS,
        notes=(
            note(1, cause="diverged"),
            note(2, state="failed", cause="error", attempts=3),
            note(3, state="complete", cause=None, attempts=2, reason="worker 1 on here stopped beating"),
            note(4, state="complete", cause=None, attempts=2, reason=None),
            note(5, level=None, state="waiting", cause=None, attempts=2),
        ),
    )
    assert status_text(status).splitlines()[-2:] == [
        "  ticket 1, level 0.01: diverged, why 1",
        "  ticket 2, level 0.02: error in attempt 3, why 2",
    ]
    assert notes_text(status).splitlines() == [
        "  ticket 3, level 0.03: complete in attempt 2, after: worker 1 on here stopped beating",
        "  ticket 5, open level: waiting in attempt 2, after: why 5",
    ]
    assert notes_text(STANDS) == ""


# --- how far it is ----------------------------------------------------------------------------------------

TRAINS = replace(
    STANDS,
    finished=False,
    trials=TicketCounts(pruned=42, running=9),
    best_level=None,
    epochs_run=86,
    epochs_expected=956,
    epochs_exhaustive=15_300,
    stage=StudyStage(after=10, until=20, tickets=9),
    seconds_left=206.0,
)


def test_progress_is_of_the_epochs_that_are_expected():
    """Not of tickets, most of which halving sets aside before the first epoch."""
    assert share_done(TRAINS) == pytest.approx(86 / 956)
    stage = "epochs 11 to 20, 9 levels alive \N{MIDDLE DOT} 86 of about 956 epochs"
    assert stage_text(TRAINS) == stage
    rest = "about 3 min 26 s left \N{MIDDLE DOT} 42 pruned, 9 running"
    assert progress_text(TRAINS) == f"{stage} \N{MIDDLE DOT} {rest}"
    assert {f"  stage     {stage}", "  time left about 3 min 26 s"} <= set(status_text(TRAINS).splitlines())


def test_where_nothing_is_expected_yet_there_is_no_share():
    """While the pilot looks for the levels, and before anything is known; a finished study is done."""
    unknown = {"epochs_expected": None, "stage": None, "seconds_left": None}
    piloting = replace(TRAINS, piloting=True, **unknown)
    assert share_done(piloting) is None
    assert progress_text(piloting) == "pilot: looking for the highest level \N{MIDDLE DOT} 86 epochs"
    assert "  stage     pilot: looking" in status_text(piloting)
    assert share_done(replace(TRAINS, epochs_run=0, epochs_expected=0)) is None
    assert share_done(STANDS) == 1.0
    assert "stage" not in status_text(STANDS)


def a_worker(**fields):
    known = {"worker": 3, "host": "here", "device": "cpu", "levels": (), "seeds": None}
    return WorkerStatus(**{**known, "epochs_run": 86, "seconds": 65.0, "silent_seconds": 4.0, **fields})


@pytest.mark.parametrize(
    ("fields", "does"),
    [
        ({"levels": (0.25,), "seeds": 2}, "level 0.25, 2 seeds"),
        ({"levels": (0.0, 0.25, 0.5), "seeds": 1}, "3 levels, 0 to 0.5, 1 seed"),
        ({}, "waits for work"),
    ],
)
def test_each_worker_has_a_line(fields, does):
    """Where it is, what it trains, how much and since when."""
    [line] = crew_lines(replace(TRAINS, crew=(a_worker(**fields),)))
    assert line.split(" \N{MIDDLE DOT} ") == ["worker 3", "cpu", does, "86 epochs in 1 min 5 s"]
    assert len(line) <= 80


def test_a_silent_worker_is_told_and_where_it_is_if_there_are_several_hosts():
    crew = (a_worker(silent_seconds=40.0), a_worker(worker=4, host="there"))
    first, second = crew_lines(replace(TRAINS, crew=crew))
    assert first.endswith("silent for 40 s")
    assert first.startswith("worker 3 \N{MIDDLE DOT} here cpu")
    assert "there cpu" in second
    assert "silent" not in second


def test_of_a_large_crew_the_first_are_listed():
    lines = crew_lines(replace(TRAINS, crew=tuple(a_worker(worker=n) for n in range(20))))
    assert len(lines) == 9
    assert lines[-1] == "and 12 more workers"


def test_a_pilot_is_told_of_the_worker_that_trains_it():
    crew = (a_worker(), a_worker(epochs_run=0))
    first, second = crew_lines(replace(TRAINS, piloting=True, crew=crew))
    assert "looks for the highest level" in first
    assert "waits for work" in second


def test_what_failed_for_good_is_told_with_its_reasons():
    """In one line, each reason once."""
    failed = {"state": "failed", "cause": "error", "attempts": 3}
    notes = (note(1, **failed, reason="E: a"), note(2, **failed, reason="E: a"), note(4, **failed))
    assert failures_text(replace(STANDS, notes=(*notes, note(3)))) == (
        "2 tickets failed with E: a; ticket 4 failed with why 4"
    )
    assert failures_text(STANDS) == ""
