"""pruners: what every pruner promises, and that the median rule stops what is clearly bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import optuna
import pytest
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import TrialState

from floodsearch.catalog import pruner_of
from floodsearch.search.pruners import PRUNERS, HalvingPruner
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


def train(study: optuna.Study, rungs: Sequence[int], curve: Callable[[float], float]) -> int | None:
    """Report a curve over the share of the epochs done; return the epoch it was stopped at, or None."""
    trial = study.ask()
    for epoch in rungs:
        trial.report(curve(epoch / rungs[-1]), epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return epoch
    study.tell(trial, curve(1.0))
    return None


def study_with(pruner: BasePruner, direction: str = "maximize") -> optuna.Study:
    # Hyperband hashes the study's name into its brackets.
    return optuna.create_study(
        pruner=pruner,
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
        assert train(study, rungs, lambda share, index=index: share + index) is None


@every_pruner
def test_a_spec_names_its_pruner(name, make_spec):
    """The pruner of a spec is the one it names, made for its epochs."""
    kinds = {
        "halving": HalvingPruner,
        "median": MedianPruner,
        "hyperband": HyperbandPruner,
        "none": NopPruner,
    }
    assert type(pruner_of(make_spec(search={"pruner": name}))) is kinds[name]


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
    pruner = PRUNERS["halving"](training_of(100), first=0.1, reduction=3)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    stopped = {}
    for level, floods_at in ((0.0, 200), (0.1, 200), (0.2, 50), (0.5, 5), (0.4, 5), (0.3, 5), (0.6, 5)):
        study.enqueue_trial({"level": level})
        trial = study.ask()
        trial.suggest_float("level", 0.0, 1.0)
        for epoch in pruner.rungs:
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
