"""Searches that come to nothing, or to less than they look: what is said, and with which exit status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from floodsearch import queue
from floodsearch.cli import main
from floodsearch.errors import NoAnswerError
from floodsearch.queries import answer as answer_of
from floodsearch.queries import status
from floodsearch.records import MeasuredTrial, SeedResult
from floodsearch.report.text import best_text, status_text
from floodsearch.storage.studies import put_study
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.test_analysis import CRITERION, LOSS_CRITERION, answer, result, trial

HERE = WorkerSettings(device="cpu", threads=1)
JUDGED = ("helps", "hurts", "shown to help")
SPENT = "the budget of 5 epochs is spent; raise budget.epochs in the study file and launch it again to go on"


# --- without level 0 -------------------------------------------------------------------------------------

LOST = {
    "level 0 is running": {"state": "running"},
    "level 0 is waiting": {"state": "waiting"},
    "level 0 failed: ValueError: no": {"state": "failed", "cause": "error", "reason": "ValueError: no"},
    "level 0 diverged: the loss is nan": {
        "state": "pruned",
        "cause": "diverged",
        "reason": "the loss is nan",
    },
    "level 0 has no values of its seeds": {"state": "complete", "value": 0.9},
}


@pytest.mark.parametrize(("why", "fields"), LOST.items())
def test_without_level_zero_nothing_is_judged(why, fields):
    """Neither text nor JSON has a verdict; why level 0 has no value is said; at the end that is a failure."""
    trials = [trial(0, 0.0, **fields), trial(1, 0.2, [0.8, 0.9]), trial(2, 0.4, [0.7, 0.7])]
    best = answer(trials)
    assert (best.verdict, best.gain, best.baseline, best.no_baseline) == (None, None, None, why)
    assert best.failed
    text = best_text(best)
    assert text.splitlines()[0].startswith(f"tiny: no answer: {why}; 0.2 is the best level above 0")
    assert f"not known: {why}" in text
    assert not any(word in text for word in JUDGED)
    provisional = answer(trials, finished=False)
    assert not provisional.failed
    assert "(provisional: " in best_text(provisional).splitlines()[0]
    assert answer(trials, finished=False, stopped="3 tickets in a row failed").failed


def test_a_level_zero_that_was_deleted_is_missed():
    """Nobody can say what became of it."""
    assert answer([trial(1, 0.2, [0.8, 0.9])]).no_baseline == "level 0 has no ticket"


def test_level_zero_of_the_same_settings_is_missed():
    """The level 0 of other settings compares nothing."""
    few, many = {"weight_decay": 0.0}, {"weight_decay": 0.1}
    trials = [
        trial(0, 0.0, [0.5, 0.6], beside=few),
        trial(1, 0.0, beside=many, state="failed", reason="no memory"),
        trial(2, 0.2, [0.5, 0.5], beside=few),
        trial(3, 0.2, [0.9, 0.9], beside=many),
    ]
    best = answer(trials)
    assert (best.parameters, best.no_baseline) == (many, "level 0 failed: no memory")


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("code", "exit_status"), [("raise ValueError('no zero')", 1), ("pass", 0)], ids=["fails", "trains"]
)
def test_a_search_without_level_zero_is_a_failure(
    tmp_path, monkeypatch, capsys, make_spec, database, write_code, code, exit_status
):
    """`best` exits with 1, with `--json` too, and says the error of level 0; with a level 0 it is 0."""
    module = write_code(f"""
def train(run):
    if run.level == 0:
        {code}
    for epoch in run.epochs():
        run.report(val_accuracy=0.5 + run.level + run.seed / 100)
""")
    options = {"label_noise": None, "width": None, "depth": None}
    changes = {"task": None, "options": options, "objective": f"{module}:train"}
    study = put_study(database, make_spec(**changes, training={"epochs": 2, "validate_every": 1}))
    queue.fill(study)
    work(study, HERE, LeaveRequest())
    for arguments in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["floodsearch", "best", "tiny", *arguments])
        monkeypatch.setenv("FLOODSEARCH_STORAGE", str(database.name))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == exit_status
        said = capsys.readouterr().out
        assert ("level 0 failed: ValueError: no zero" in said) is bool(exit_status)
        assert not any(word in said for word in (JUDGED if exit_status else ()))


# --- nothing to compare ----------------------------------------------------------------------------------


def test_a_budget_that_ended_after_level_zero_says_so():
    """Neither an interval nor a verdict is told of levels that nobody has trained."""
    waiting = [trial(n, 0.1 * n, state="waiting") for n in (1, 2)]
    best = answer([trial(0, 0.0, [0.8, 0.9]), *waiting], stopped=SPENT)
    assert (best.level, best.interval, best.tied, best.verdict, best.tried) == (0.0, None, None, None, ())
    lines = best_text(best).splitlines()
    assert lines[0] == f"tiny: only level 0 was trained to its end: {SPENT}"
    assert not any(word in "\n".join(lines) for word in (*JUDGED, "90 %", "no level was better", "tied"))
    so_far = best_text(answer([trial(0, 0.0, [0.8, 0.9]), *waiting], finished=False)).splitlines()[0]
    assert so_far == "tiny: only level 0 was trained to its end (provisional: 1 of 3 tickets are done)"


def test_a_budget_that_ended_in_between_says_what_was_left_out():
    """An answer from some of the levels is told as such."""
    trials = [trial(0, 0.0, [0.8, 0.9]), trial(1, 0.1, [0.9, 0.95]), trial(2, 0.2, state="waiting")]
    assert f"not searched       1 ticket: {SPENT}" in best_text(answer(trials, stopped=SPENT))
    assert "not searched" not in best_text(answer(trials[:2], stopped=SPENT)), "nothing is left"
    assert "not searched" not in best_text(answer(trials, finished=False)), "it is not closed"


def test_where_all_others_failed_their_number_is_told():
    """Levels that diverged or failed show nothing, and are not said to be worse."""
    others = [
        trial(1, 0.1, state="pruned", cause="diverged", reason="the loss is nan"),
        trial(2, 0.2, state="failed", cause="error", reason="ValueError: no"),
    ]
    text = best_text(answer([trial(0, 0.0, [0.8, 0.9]), *others]))
    assert text.startswith("tiny: only level 0 was trained to its end: of the others 1 pruned, 1 failed\n")
    assert not any(word in text for word in JUDGED)


@pytest.mark.parametrize(
    ("trials", "stopped", "said"),
    [
        ([trial(0, 0.0)], SPENT, SPENT),
        ([trial(0, 0.0)], None, "ask again later"),
        ([], "the pilot failed: no val_loss", "the pilot failed: no val_loss"),
        (
            [trial(n, n / 10, state="failed", cause="error", reason=f"ValueError: {n}") for n in range(3)],
            None,
            "ticket 2: ValueError: 2",
        ),
        (
            [trial(0, 0.0, state="pruned", cause="diverged", reason="the loss is nan")],
            None,
            "ticket 0: the loss is nan",
        ),
    ],
    ids=["budget", "running", "pilot", "failed", "diverged"],
)
def test_a_study_without_an_answer_says_why(trials, stopped, said):
    """What is spent and what to change, or the error; "later" only where somebody trains on."""
    with pytest.raises(NoAnswerError, match="no complete ticket yet") as error:
        answer(trials, stopped=stopped)
    assert str(error.value).endswith(f"; {said}")


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("budget", [5, 20])
def test_a_spent_budget_is_told_with_what_to_change(database, make_spec, budget):
    """Before level 0 is complete and after it; `status` says it too, and a larger budget goes on."""
    flooded_at_once = {"high": 0.9, "count": 2}
    study = put_study(database, make_spec(levels=flooded_at_once, budget={"epochs": budget}))
    queue.fill(study)
    spent = SPENT.replace(" 5 ", f" {budget} ")
    assert work(study, HERE, LeaveRequest()) == spent
    if budget == 5:
        with pytest.raises(NoAnswerError, match=spent):
            answer_of(study)
    else:
        best = answer_of(study)
        assert (best.tried, best.finished, best.stopped) == ((), True, spent)
        assert spent in best_text(best)
    assert spent in status_text(status(study))
    more = put_study(database, make_spec(levels=flooded_at_once, budget={"epochs": 1000}))
    assert work(more, HERE, LeaveRequest()) == "all tickets are finished"
    best = answer_of(more)
    assert (best.stopped, best.tried) == (None, (0.9,))
    assert status_text(status(more)).startswith("tiny: finished\n")


# --- early stopping without flooding ---------------------------------------------------------------------


def measured(
    accuracy: float | None, stopped: float | None, *, loss: float = 0.5, value: float = 0.8
) -> Sequence[SeedResult]:
    """Return three seeds with this test accuracy at their ends and at their best validations."""
    return tuple(
        result(
            seed,
            value + seed / 100,
            test_accuracy=accuracy,
            best_test_accuracy=stopped,
            test_loss=loss,
            best_test_loss=stopped,
        )
        for seed in range(3)
    )


def searched(plain: Sequence[SeedResult], best: Sequence[SeedResult]) -> list[MeasuredTrial]:
    """Return the trials of a search with a level 0 and one level above it."""
    return [
        trial(n, level, state="complete", seeds=3, results=tuple(results))
        for n, (level, results) in enumerate([(0.0, plain), (0.22, best)])
    ]


def test_early_stopping_that_is_as_good_stands_in_the_first_line():
    """With the numbers of the demo: .8315 without flooding, .8159 with it at the end and .8246 stopped."""
    best = answer(searched(measured(0.7438, 0.8315, value=0.7728), measured(0.8159, 0.8246, value=0.8365)))
    found = best.early_stopping
    assert found is not None
    assert (found.measure, found.as_good) == ("test_accuracy", True)
    assert (found.unflooded, found.at_end, found.stopped) == pytest.approx((0.8315, 0.8159, 0.8246))
    assert best_text(best).splitlines()[0] == (
        "tiny: the best flood level is 0.22 (0.22 to 0.22 with 90 %), "
        "but early stopping without flooding is at least as good: "
        "test accuracy 0.8315, with flooding 0.8159, with both 0.8246"
    )


@pytest.mark.parametrize(
    ("unflooded", "at_end", "stopped", "as_good"),
    [
        (0.80, 0.80, 0.80, True),
        (0.80, 0.81, 0.79, False),
        (0.80, 0.79, 0.81, False),
        (0.82, 0.79, 0.81, True),
    ],
)
def test_both_ends_of_the_answer_have_to_be_reached(unflooded, at_end, stopped, as_good):
    """Flooding that is better at either of them is worth its while."""
    best = answer(searched(measured(0.7, unflooded, value=0.7), measured(at_end, stopped)))
    assert best.early_stopping is not None
    assert best.early_stopping.as_good is as_good
    assert ("as good" in best_text(best)) is as_good


def test_a_search_by_loss_is_held_against_test_losses():
    """There the lower one is better."""
    low = searched(measured(0.7, 0.4, value=0.9), measured(0.7, 0.45, loss=0.5, value=0.3))
    found = answer(low, LOSS_CRITERION).early_stopping
    assert found is not None
    assert (found.measure, found.as_good) == ("test_loss", True)
    assert found.unflooded == pytest.approx(0.4)
    high = searched(measured(0.7, 0.6, value=0.9), measured(0.7, 0.45, loss=0.5, value=0.3))
    assert not getattr(answer(high, LOSS_CRITERION).early_stopping, "as_good", True)


def test_what_was_not_tested_is_not_compared():
    """Not where a seed was not tested at its best validation, without level 0, or at level 0."""
    plain, best = measured(0.7, 0.8, value=0.7), measured(0.7, 0.8)
    untested = [*best[:2], replace(best[2], best_test_accuracy=None)]
    assert answer(searched(plain, untested)).early_stopping is None
    assert answer(searched(plain, best)[1:]).early_stopping is None
    assert answer(searched(best, plain)).early_stopping is None
    assert answer(searched(plain, best), replace(CRITERION, metric="f1")).early_stopping is not None
