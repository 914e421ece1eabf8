"""pruners: what every judge promises, through Optuna and without, and that a new one is one entry."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner
from optuna.trial import TrialState

from floodsearch.catalog import judge_of
from floodsearch.search.halving import Standing
from floodsearch.search.judge import Halving, Judge, OptunaJudge, Rung
from floodsearch.search.plain_optuna import JudgePruner
from floodsearch.search.pruners import PRUNERS
from floodsearch.study.spec import Training

EPOCHS = [1, 2, 10, 100, 500]
CURVES = {
    "rising": lambda share: share,
    "falling": lambda share: 1 - share,
    "constant": lambda share: 0.5,
    "falls at the end": lambda share: 0.9 if share < 0.8 else 0.1,
    "negative": lambda share: -100 * share,
}

every_pruner = pytest.mark.parametrize("name", PRUNERS)


def training_of(epochs: int) -> Training:
    return Training(epochs=epochs, validate_every=min(5, epochs))


def rungs_of(epochs: int) -> tuple[int, ...]:
    return training_of(epochs).report_epochs()


def train(
    study: optuna.Study, rungs: Sequence[int], curve: Callable[[float], float], level: float = 0.5
) -> int | None:
    """Report a curve over the share of the epochs done; return the epoch it was stopped at, or None."""
    study.enqueue_trial({"level": level})
    trial = study.ask()
    trial.suggest_float("level", 0.0, 1.0)
    for epoch in rungs:
        trial.report(curve(epoch / rungs[-1]), epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return epoch
    study.tell(trial, curve(1.0))
    return None


def study_with(judge: Judge, direction: str = "maximize") -> optuna.Study:
    # Hyperband hashes the study's name into its brackets.
    return optuna.create_study(
        pruner=JudgePruner(judge),
        direction=direction,
        study_name="pruners",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@every_pruner
@pytest.mark.parametrize("epochs", EPOCHS)
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_single_run_never_stops_itself(name, epochs, curve, direction):
    """With nothing to compare with, no curve of any length is stopped."""
    rungs = rungs_of(epochs)
    assert train(study_with(PRUNERS[name](training_of(epochs)), direction), rungs, CURVES[curve]) is None


@every_pruner
def test_the_best_of_many_is_never_stopped(name):
    """A run above all others at every rung trains to its end, whichever bracket it falls into."""
    rungs = rungs_of(100)
    study = study_with(PRUNERS[name](training_of(100)))
    for index in range(12):
        assert train(study, rungs, lambda share, index=index: share + index, (index + 1) / 12) is None


@every_pruner
def test_a_spec_names_its_pruner(name, make_spec):
    """The judge of a spec is the one it names, made for its epochs: those at which it decides."""
    spec = make_spec(search={"pruner": name}, training={"epochs": 30, "validate_every": 3})
    judge = judge_of(spec)
    kinds = {"halving": Halving, "median": OptunaJudge, "hyperband": OptunaJudge, "none": Judge}
    pruners = {"median": MedianPruner, "hyperband": HyperbandPruner}
    assert type(judge) is kinds[name]
    assert type(getattr(judge, "pruner", None)) is pruners.get(name, type(None))
    each = spec.training.report_epochs()[:-1]
    assert judge.rungs == {"halving": (3, 6, 12, 24), "none": ()}.get(name, each)
    assert judge.together == (name == "halving")


@pytest.mark.parametrize(
    ("name", "settings", "bound"),
    [
        ("median", {"startup": -1}, "startup must be at least 0, but is -1"),
        ("median", {"warmup": -5}, "warmup must be at least 0, but is -5"),
        ("halving", {"levels": 0}, "levels must be at least 1, but is 0"),
        ("halving", {"brackets": 0}, "brackets must be at least 1, but is 0"),
        ("hyperband", {"first": 0}, "first must be at least 1, but is 0"),
        ("hyperband", {"first": 101}, "first must be at most the 100 epochs, but is 101"),
        ("hyperband", {"reduction": 1}, "reduction must be at least 2, but is 1"),
    ],
    ids=str,
)
def test_a_setting_out_of_bounds_is_refused(name, settings, bound):
    """A bad setting is refused with its name, bound and value."""
    with pytest.raises(ValueError, match=bound):
        PRUNERS[name](training_of(100), **settings)


@pytest.mark.parametrize(("startup", "stopped_at"), [(5, 5), (6, None)])
def test_the_median_rule_stops_a_clearly_bad_late_trial(startup, stopped_at):
    """After `startup` complete trials, one that is below all of them ends at its first rung."""
    rungs = rungs_of(100)
    study = study_with(PRUNERS["median"](training_of(100), startup=startup))
    for index in range(5):
        assert train(study, rungs, lambda share, index=index: 0.5 + 0.01 * index + 0.1 * share) is None
    assert train(study, rungs, lambda share: 0.1) == stopped_at


def test_the_median_rule_waits_for_the_warmup():
    """No trial is stopped before its warm-up is over."""
    rungs = rungs_of(100)
    study = study_with(PRUNERS["median"](training_of(100), startup=1, warmup=50))
    train(study, rungs, lambda share: 0.9)
    assert train(study, rungs, lambda share: 0.1) == 50


def test_hyperband_stops_some_of_many_bad_trials():
    """Behind a run that beats them all, Hyperband stops later ones before their end, at their rungs."""
    rungs = rungs_of(100)
    study = study_with(PRUNERS["hyperband"](training_of(100)))
    stops = [train(study, rungs, lambda share, index=index: 1.0 - 0.01 * index) for index in range(30)]
    stopped = [epoch for epoch in stops if epoch is not None]
    assert stopped
    assert set(stopped) <= set(rungs)


def test_none_stops_nothing():
    """The pruner `none` lets the worst trial finish."""
    rungs = rungs_of(100)
    study = study_with(PRUNERS["none"](training_of(100)))
    assert [train(study, rungs, lambda share, index=index: -float(index)) for index in range(10)] == [
        None
    ] * 10


def test_halving_of_optuna_does_not_judge_what_has_not_flooded():
    """A trial that has reported the very values of level 0 goes on, however poor they are beside others."""
    judge = PRUNERS["halving"](training_of(100), first=0.1, reduction=3)
    study = optuna.create_study(direction="maximize", pruner=JudgePruner(judge))
    stopped = {}
    for level, floods_at in ((0.0, 200), (0.1, 200), (0.2, 50), (0.5, 5), (0.4, 5), (0.3, 5), (0.6, 5)):
        study.enqueue_trial({"level": level})
        trial = study.ask()
        trial.suggest_float("level", 0.0, 1.0)
        for epoch in judge.rungs:
            trial.report(0.1 if epoch < floods_at else level, epoch)
            if trial.should_prune():
                stopped[level] = epoch
                break
        study.tell(
            trial, None if level in stopped else level, state=TrialState.PRUNED if level in stopped else None
        )
    assert 0.0 not in stopped
    assert 0.1 not in stopped
    assert stopped
    assert all(epoch >= 50 for level, epoch in stopped.items() if level == 0.2)


def rung(
    epoch: int, standings: dict[int, Standing], ended: dict[int, dict[int, Standing]] | None = None
) -> Rung:
    """Return a rung with others that ended, and Optuna's pruners that stop whatever they are asked about."""
    return Rung(
        epoch=epoch,
        standings=standings,
        scale=1.0,
        maximize=True,
        ended=lambda epoch: (ended or {}).get(epoch, {}),
        ask=lambda pruner, ticket: True,
    )


@every_pruner
def test_each_ticket_of_a_rung_is_decided_on(name):
    """Those in training get a decision with a reason, the others none; level 0 is never stopped."""
    judge = PRUNERS[name](training_of(100))
    for epoch in training_of(100).report_epochs():
        standings = {3: Standing(0.0, -9.0), 5: Standing(0.5, 1.0), 4: Standing(0.7, -1.0)}
        decisions = judge.judge(rung(epoch, standings, {epoch: {-1: Standing(0.6, 2.0)}}))
        assert decisions.keys() == standings.keys()
        assert all(one.reason for one in decisions.values())
        assert not decisions[3].prune


@every_pruner
@pytest.mark.parametrize("epochs", EPOCHS)
def test_the_plan_of_a_judge_leads_to_the_end(name, epochs):
    """From where the levels are, stage by stage without a gap, to the last epoch, with never more of them."""
    judge = PRUNERS[name](training_of(epochs))
    for reached in {0, 1, epochs // 2, epochs - 1} - {epochs}:
        stages = list(judge.plan(9, reached, epochs))
        assert stages[0][0] == reached
        assert stages[0][2] == 9
        assert stages[-1][1] == epochs
        assert all(after < until and levels >= 1 for after, until, levels in stages)
        for (_, until, before), (after, _, levels) in itertools.pairwise(stages):
            assert until == after
            assert levels <= before


def test_a_plan_ends_with_the_epochs_of_the_tickets():
    """Tickets that were taken before the study grew do not go beyond their own last epoch."""
    judge = PRUNERS["halving"](training_of(100), first=0.1)
    assert list(judge.plan(9, 10, 30)) == [(10, 20, 9), (20, 30, 3)]


def test_halving_compares_with_those_that_ended_before():
    """A level that others have beaten at its rung is stopped, as it is where they train beside it."""
    judge = PRUNERS["halving"](training_of(100), first=0.1, reduction=9)
    poor, good = Standing(0.9, 0.0), {-1: Standing(0.1, 1.0), -2: Standing(0.2, 1.0)}
    assert not judge.judge(rung(10, {0: poor}))[0].prune
    assert judge.judge(rung(10, {0: poor}, {10: good}))[0].prune
    assert judge.judge(rung(10, {0: poor} | {1 - number: one for number, one in good.items()}))[0].prune


def test_halving_reads_others_at_its_rungs_only():
    """At other epochs all go on, and nobody looks for those that ended."""

    def read(epoch: int) -> dict[int, Standing]:
        raise AssertionError(epoch)

    judge = PRUNERS["halving"](training_of(100))
    between = dataclasses.replace(rung(judge.rungs[0] + 1, {0: Standing(0.5, 0.0)}), ended=read)
    assert judge.judge(between)[0].reason == "not judged"


@pytest.mark.parametrize(("maximize", "value"), [(True, -0.25), (False, 0.25)])
def test_the_reason_of_an_optuna_pruner_names_the_value_as_it_was_reported(maximize, value):
    """In the metric's own sign, with the name and the epoch."""
    at = dataclasses.replace(rung(5, {0: Standing(0.5, -0.25)}), maximize=maximize)
    decision = PRUNERS["median"](training_of(100)).judge(at)[0]
    assert decision.reason == f"pruned by median at epoch 5, with a recent mean of {value}"
