"""samplers and space: every rule keeps its promises, on intervals that are shifted, scaled and pending."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

import floodsearch.search as offered
from floodsearch.catalog import known, rule_of, schedule_settings
from floodsearch.records import Attribute, Parameter
from floodsearch.search import samplers
from floodsearch.search.history import Tried, at_the_end, tried_in
from floodsearch.search.plain_optuna import RuleSampler
from floodsearch.search.samplers import SAMPLERS, heuristic
from floodsearch.search.space import RESOLUTION, Space
from floodsearch.search.tickets import tickets, van_der_corput
from floodsearch.study.reader import parse
from floodsearch.study.spec import Choices, Range, Spec
from tests.conftest import TINY, merged

KNOWN = known()
RULES = {name: one.rule for name, one in SAMPLERS.items() if one.rule is not None}
SPACES = {
    "grid": Space(0.0, 0.5, grid=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
    "grid above 0": Space(2.0, 4.0, grid=(0.0, 2.0, 2.5, 3.0, 3.5, 4.0)),
    "continuous": Space(0.0, 0.5),
    "continuous above 0": Space(20.0, 50.0),
    "tiny range": Space(0.001, 0.002),
    "choices": Space(0.1, 0.5, grid=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5), choices={"weight_decay": (0.0, 0.1)}),
    "settings": Space(
        0.0, 0.2, (0.0, 0.1, 0.2), {"weight_decay": (0.0, 0.1)}, {"until_epoch": Choices(choices=(2, 4))}
    ),
    "one level": Space(0.5, 0.5, grid=(0.0, 0.5)),
}
RANGES = {
    "range": Space(0.5, 0.5, grid=(0.0, 0.5), settings={"alpha": Range(low=0.005, high=0.03, log=True)}),
    "range and choices": Space(
        0.0, 0.5, None, {"weight_decay": (0.0, 0.1)}, {"until_accuracy": Range(low=0.9, high=1.0)}
    ),
}
EVERY_RULE_AND_SPACE = [
    pytest.param(rule, space, id=f"{rule}-{name}")
    for rule in RULES
    for name, space in (SPACES if rule == "heuristic" else SPACES | RANGES).items()  # it climbs levels only
]
BASELINE = Tried(ticket=0, level=0.0, beside={}, score=0.5)
repeatable = settings(derandomize=True, deadline=None, database=None)
every_rule = pytest.mark.parametrize("rule", RULES)
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def tried(ticket: int, level: float, score: float | None, **beside: Parameter) -> Tried:
    return Tried(ticket=ticket, level=level, beside=beside, score=score)


def history(space: Space, n: int = 8) -> list[Tried]:
    """Return the baseline and n proposals with scores, and two more of which one is pending."""
    rng = np.random.default_rng(5)
    levels = rng.uniform(space.low, space.high, n)
    several = [
        tried(index + 1, float(level), -((index - 3) ** 2) / 10, **space.draw(rng))
        for index, level in enumerate(levels)
    ]
    pending = tried(n + 1, (space.low + space.high) / 2, None, **space.draw(rng))
    return [BASELINE, *several, pending, tried(n + 2, space.high, -1.0, **space.draw(rng))]


def propose(rule: str, space: Space, seen: Sequence[Tried], ticket: int = 20) -> dict[str, Parameter]:
    return RULES[rule](space, seen, np.random.default_rng([0, ticket]))


class Search:
    """A search through Optuna in memory: workers ask, train in their own time, and tell."""

    def __init__(self, sampler: RuleSampler, pruner: optuna.pruners.BasePruner | None = None) -> None:
        self.space = sampler.space
        self.study = optuna.create_study(
            direction="maximize" if sampler.maximize else "minimize",
            sampler=sampler,
            pruner=pruner,
            study_name="search",
        )

    def ask(self) -> optuna.Trial:
        return self.study.ask(self.space.distributions())

    def tell(self, trial: optuna.Trial, score: float | None, state: TrialState = TrialState.COMPLETE) -> None:
        self.study.tell(trial, score, state)

    def add(self, parameters: dict[str, Parameter], score: float) -> None:
        """Add a ticket that is fixed: the baseline of some choices."""
        every = self.space.distributions()
        distributions = {name: every[name] for name in parameters}
        self.study.add_trial(optuna.create_trial(params=parameters, distributions=distributions, value=score))

    def levels(self) -> list[tuple[Any, ...]]:
        return [tuple(trial.params.values()) for trial in self.study.get_trials()]


def search(
    rule: str | Callable[..., Any], space: Space, *, seed: int = 0, maximize: bool = True, **more: Any
) -> Search:
    chosen = RULES[rule] if isinstance(rule, str) else rule
    return Search(RuleSampler(chosen, space, seed=seed, maximize=maximize), **more)


# --- every rule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "space"), EVERY_RULE_AND_SPACE)
@pytest.mark.parametrize("n", [0, 1, 8])
def test_a_proposal_is_complete_and_in_range(rule, space, n):
    """A proposal names a level in [low, high] and a value of each other parameter that is searched."""
    seen = history(space)[:n]
    for ticket in range(3):
        proposal = propose(rule, space, seen, ticket)
        assert proposal.keys() == space.distributions().keys()
        assert space.low <= proposal.pop("level") <= space.high
        assert space.holds(proposal)


@pytest.mark.parametrize(("rule", "space"), EVERY_RULE_AND_SPACE)
def test_the_same_history_gives_the_same_proposal(rule, space):
    """A rule has no state of its own: asked again, or after other questions, it answers the same."""
    seen = history(space)
    first = propose(rule, space, seen)
    propose(rule, space, seen[:3], ticket=4)
    np.random.default_rng(0).random()
    assert propose(rule, space, seen) == first


@pytest.mark.parametrize("rule", ["random", "heuristic"])
@every_space
@repeatable
@given(order=st.permutations(range(11)))
def test_the_order_of_the_history_does_not_matter(rule, space, order):
    """Rules that sort what was tried by its ticket propose the same, however the trials are listed."""
    seen = history(space)
    assert propose(rule, space, [seen[index] for index in order]) == propose(rule, space, seen)


@pytest.mark.parametrize("rule", ["random", "tpe", "gp"])
def test_tickets_get_different_proposals(rule):
    """From one history, different tickets are proposed different levels."""
    space = SPACES["continuous"]
    proposals = {propose(rule, space, [BASELINE], ticket)["level"] for ticket in range(6)}
    assert len(proposals) == 6


@every_rule
def test_a_rule_leaves_the_global_random_state_alone(rule):
    """All that is random in a proposal comes from the generator that is handed in."""
    before = np.random.get_state()[1].tolist()
    propose(rule, SPACES["continuous"], history(SPACES["continuous"]))
    assert np.random.get_state()[1].tolist() == before


@every_rule
@pytest.mark.parametrize("name", ["grid", "grid above 0", "choices", "settings", "one level"])
def test_every_ticket_of_a_grid_is_proposed_once(rule, name):
    """Through Optuna every proposal is on the grid and new, until all were tried in each combination."""
    space = SPACES[name]
    running = search(rule, space, seed=3)
    for beside in space.baselines():
        running.add({"level": 0.0, **beside}, 1.0)
    above = [level for level in space.grid if level > 0]
    wanted = [(level, *beside.values()) for level in above for beside in space.combinations()]
    for _ in wanted:
        trial = running.ask()
        running.tell(trial, math.cos(7 * trial.params["level"]))
    assert sorted(running.levels()[len(space.baselines()) :]) == sorted(wanted)


@pytest.mark.parametrize("rule", ["random", "tpe", "gp"])
@pytest.mark.parametrize("space", RANGES.values(), ids=RANGES)
def test_a_range_beside_the_level_is_searched(rule, space):
    """Beside baselines that have none of it, a range is proposed with new values, or at new levels."""
    running = search(rule, space, seed=3)
    for beside in space.baselines():
        running.add({"level": 0.0, **beside}, 0.1)
    for _ in range(14):
        trial = running.ask()
        assert trial.params.keys() == space.distributions().keys()
        running.tell(trial, -abs(trial.params["level"] - 0.5))
    assert len(set(running.levels())) == 14 + len(space.baselines())


@every_rule
@pytest.mark.parametrize("name", ["grid", "continuous above 0"])
def test_workers_that_overlap_never_get_the_same_level(rule, name):
    """Three workers that ask and tell in turn, each at its own pace, never train a level twice."""
    space = SPACES[name]
    running = search(rule, space, seed=1)
    rng = np.random.default_rng(2)
    in_hand: list[optuna.Trial] = []
    asked = 0
    while asked < 6 or in_hand:
        if asked < 6 and len(in_hand) < 3:
            in_hand.append(running.ask())
            asked += 1
        else:
            trial = in_hand.pop(int(rng.integers(len(in_hand))))
            running.tell(trial, -abs(trial.params["level"] - space.low))
    levels = [level for (level,) in running.levels()]
    closest = (space.high - space.low) / RESOLUTION / 2
    assert all(abs(one - other) >= closest for index, one in enumerate(levels) for other in levels[:index])


@pytest.mark.parametrize("rule", ["tpe", "gp"])
def test_a_value_of_a_range_is_learned_from_others(rule):
    """After 20 proposals the best value of a range is as near the top as 20 random ones are in 99 of 100.

    Random ones are all further away than d with probability (1 - 2 d / width) ** 20.
    """
    space = RANGES["range"]
    running = search(rule, space, seed=1)
    running.add({"level": 0.0}, 0.0)
    place = lambda alpha: math.log(alpha / 0.005) / math.log(6)  # noqa: E731 - in [0, 1]
    for _ in range(20):
        trial = running.ask()
        running.tell(trial, 1 - (place(trial.params["alpha"]) - 0.6) ** 2)
    assert abs(place(running.study.best_params["alpha"]) - 0.6) <= (1 - 0.01 ** (1 / 20)) / 2


@every_rule
def test_a_level_that_diverged_is_not_proposed_again(rule):
    """A trial that diverged keeps its level from being proposed, but its report counts for nothing."""
    histories: list[Sequence[Tried]] = []

    def listening(space: Space, tried: Sequence[Tried], rng: np.random.Generator) -> dict[str, Parameter]:
        histories.append(tried)
        return RULES[rule](space, tried, rng)

    running = search(listening, SPACES["grid"])
    gone = running.ask()
    gone.set_user_attr(Attribute.CAUSE, "diverged")
    gone.report(1e9, 1)
    running.tell(gone, None, TrialState.PRUNED)
    for _ in range(5):
        running.tell(running.ask(), 0.5)
    assert len(set(running.levels())) == 6
    assert [seen[0].score for seen in histories[1:]] == [None] * 5


@every_rule
def test_a_lost_trial_gives_its_level_back(rule):
    """A failed trial says nothing: its ticket is proposed the same level under its new number."""
    running = search(rule, SPACES["grid"], seed=4)
    running.study.add_trial(
        optuna.create_trial(params={"level": 0.0}, distributions=running.space.distributions(), value=0.5,
                            user_attrs={Attribute.TICKET: 0, Attribute.CAUSE: "complete"})
    )  # fmt: skip
    for number in range(2):
        running.study.enqueue_trial({}, user_attrs={Attribute.TICKET: 7})
        trial = running.ask()
        assert trial.user_attrs[Attribute.TICKET] == 7
        running.tell(trial, None, TrialState.FAIL)
        assert number + 2 == len(running.study.get_trials())
    _, first, second = running.levels()
    assert first == second


@every_rule
def test_the_direction_of_a_loss_is_turned(rule):
    """To minimize is to maximize the negative: the proposals are the same."""
    space = SPACES["continuous"]
    runs = [search(rule, space, maximize=maximize) for maximize in (True, False)]
    for index in range(7):
        for running, sign in zip(runs, (1, -1), strict=True):
            running.tell(running.ask(), sign * math.sin(3 * index))
    assert runs[0].levels() == runs[1].levels()


@every_rule
def test_hyperband_hides_no_trial_from_a_rule(rule):
    """Optuna shows samplers one bracket only under Hyperband; our rules still see every trial."""
    seen: list[int] = []

    def listening(space: Space, tried: Sequence[Tried], rng: np.random.Generator) -> dict[str, Parameter]:
        seen.append(len(tried))
        return RULES[rule](space, tried, rng)

    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=27, reduction_factor=3)
    running = search(listening, SPACES["continuous"], pruner=pruner)
    for _ in range(8):
        trial = running.ask()
        trial.report(trial.params["level"], 1)
        trial.should_prune()
        running.tell(trial, trial.params["level"])
    assert seen == list(range(8))


def test_a_parameter_that_is_not_searched_is_refused():
    """Asking the sampler for another parameter names those that there are."""
    trial = search("random", SPACES["choices"]).ask()
    with pytest.raises(ValueError, match="'dropout' is not searched; known: level, weight_decay"):
        trial.suggest_float("dropout", 0, 1)


@pytest.mark.parametrize("rule", ["tpe", "gp", "heuristic"])
@pytest.mark.parametrize(("space", "place"), [(Space(0.0, 0.5), 0.6), (Space(20.0, 50.0), 0.15)], ids=str)
def test_a_rule_finds_the_top_of_a_noisy_quadratic(rule, space, place):
    """After 20 proposals the best one is as near the top as 20 random ones would be in 99 of 100 cases.

    Random ones are all further away than d with probability (1 - 2 d / width) ** 20. Noise within +-e on a
    score 1 - (distance / width) ** 2 can hide a squared distance of 2 e more.
    """
    width, noise, n = space.high - space.low, 0.002, 20
    top = space.low + place * width
    rng = np.random.default_rng([7, int(100 * place)])
    running = search(rule, space, seed=0)
    for _ in range(n):
        trial = running.ask()
        running.tell(trial, 1 - ((trial.params["level"] - top) / width) ** 2 + rng.uniform(-noise, noise))
    reached = (1 - 0.01 ** (1 / n)) / 2
    assert abs(running.study.best_params["level"] - top) / width <= math.sqrt(reached**2 + 2 * noise)


def test_plain_optuna_finds_its_names_in_one_place():
    """What a study of plain Optuna needs of ours is offered by `floodsearch.search`, and shown by `dir`."""
    for name in offered.__all__:
        assert getattr(offered, name) is not None
        assert name in dir(offered)
    assert {name for name, one in RULES.items() if getattr(offered, name) is one} == set(RULES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = offered.nothing


# --- a proposal ------------------------------------------------------------------------------------------


@every_rule
@every_space
def test_a_proposal_needs_no_study(rule, space):
    """From records alone it is what plain Optuna is proposed, whose trials tell the same."""
    running, seen = search(rule, space, seed=2), []
    for number in range(4):
        wanted = samplers.propose(RULES[rule], space, seen, seed=2, ticket=number)
        trial = running.ask()
        assert trial.params == wanted
        score = math.sin(5 * trial.params["level"])
        running.tell(trial, score)
        seen.append(tried(number, score=score, **wanted))


@every_rule
def test_a_proposal_that_was_tried_moves_to_the_nearest_new_one(rule):
    """Whatever a rule wants, no level of a grid is proposed twice while one is left; then what it wants."""
    space, seen = SPACES["grid"], []
    for number in range(7):
        found = samplers.propose(RULES[rule], space, seen, seed=0, ticket=number)
        assert found["level"] not in {one.level for one in seen} or number == 6
        seen.append(tried(number, found["level"], 0.5))
    assert {one.level for one in seen[:6]} == set(space.grid)


def test_trials_that_tell_nothing_are_no_history():
    """Failed ones, those of other parameters and those without a level are left out.

    What trains has no score, what diverged has no reports either, and to minimize turns the sign.
    """
    space = SPACES["choices"]
    distributions = space.distributions()

    def trial(state: TrialState, parameters: dict[str, Parameter], **more: Any) -> optuna.trial.FrozenTrial:
        of = {
            name: distributions.get(name, optuna.distributions.FloatDistribution(0, 1)) for name in parameters
        }
        return optuna.create_trial(state=state, params=parameters, distributions=of, **more)

    sound: dict[str, Parameter] = {"level": 0.2, "weight_decay": 0.1}
    done = {"user_attrs": {Attribute.TICKET: 7, Attribute.CAUSE: "complete"}}
    found = tried_in(
        [
            trial(TrialState.COMPLETE, sound, value=0.25, intermediate_values={2: 0.5, 4: math.nan}, **done),
            trial(TrialState.FAIL, sound),
            trial(TrialState.COMPLETE, {"level": 0.2, "weight_decay": 0.1, "dropout": 0.5}, value=1.0),
            trial(TrialState.COMPLETE, {"weight_decay": 0.1}, value=1.0),
            trial(TrialState.COMPLETE, sound, value=1.0, user_attrs={Attribute.TICKET: 3}),  # told by hand
            trial(TrialState.RUNNING, sound, intermediate_values={2: 0.5}),
            trial(TrialState.PRUNED, sound, intermediate_values={2: 9.0}, user_attrs={"cause": "diverged"}),
        ],
        space,
        maximize=False,
    )
    assert [(one.score, dict(one.rungs)) for one in found] == [
        (-0.25, {2: -0.5}),
        (None, {2: -0.5}),
        (None, {}),
    ]
    assert found[0].ticket == 7
    assert {(one.level, *one.beside.values()) for one in found} == {(0.2, 0.1)}


# --- what was pruned -------------------------------------------------------------------------------------


def curve(
    ticket: int, level: float, values: dict[int, float], *, ended: bool = True, **beside: Parameter
) -> Tried:
    """Return a trial that reported these values and ended, or trains on."""
    score = values[max(values)] if ended and values else None
    return Tried(ticket=ticket, level=level, beside=beside, score=score, rungs=values)


def halved(values: Callable[[float, int], float], lasting: dict[float, int]) -> list[Tried]:
    """Return trials of some levels that report at rungs 2, 4, 6 and 8, up to their last one."""
    return [
        curve(ticket, level, {rung: values(level, rung) for rung in (2, 4, 6, 8) if rung <= last})
        for ticket, (level, last) in enumerate(lasting.items())
    ]


LASTING = {0.0: 8, 0.1: 2, 0.2: 4, 0.3: 8, 0.4: 6, 0.5: 2}


@pytest.mark.parametrize(
    "values",
    [
        lambda level, rung: 0.8 - (level - 0.3) ** 2,  # nothing changes
        lambda level, rung: 0.8 - (level - 0.3) ** 2 - 0.01 * rung**2,  # all get worse, whatever their level
    ],
)
def test_what_was_pruned_is_worth_what_it_would_have_come_to(values):
    """Where all levels change alike, each trial has the score that it would have had at the end."""
    for one in at_the_end(halved(values, LASTING)):
        assert one.score == pytest.approx(values(one.level, 8))


def test_the_change_of_a_level_is_that_of_its_neighbours():
    """Where the change is linear in the level, and the outermost levels go on, it is exact too."""

    def values(level: float, rung: int) -> float:
        return 0.8 - (level - 0.3) ** 2 - 0.01 * rung * (0.5 - level)

    for one in at_the_end(halved(values, {**LASTING, 0.5: 8})):
        assert one.score == pytest.approx(values(one.level, 8))


def test_beyond_the_levels_that_went_on_their_change_is_constant():
    """No change is extrapolated: a level above all that went on changes like the highest of them."""
    went_on = [curve(0, 0.0, {2: 0.7, 4: 0.5}), curve(1, 0.2, {2: 0.7, 4: 0.6})]
    *_, beyond = at_the_end([*went_on, curve(2, 0.4, {2: 0.6})])
    assert beyond.score == pytest.approx(0.6 - 0.1)


def test_a_score_is_carried_over_several_rungs():
    """Nobody needs to have reported at both ends: whoever went on carries it on, still training or not."""
    trials = [
        curve(0, 0.0, {2: 0.7, 4: 0.6}),
        curve(1, 0.0, {4: 0.5, 8: 0.2}, ended=False),
        curve(2, 0.0, {2: 0.8}),
        curve(3, 0.0, {3: 0.4}),  # nobody else was there
        curve(4, 0.0, {}, ended=False),
    ]
    scores = [one.score for one in at_the_end(trials)]
    assert scores == [pytest.approx(0.6 - 0.3), None, pytest.approx(0.8 - 0.1 - 0.3), 0.4, None]


def test_each_combination_changes_by_itself():
    """A trial is carried on by those with the same choices, and by all others where there are none."""
    trials = [
        curve(0, 0.0, {2: 0.7, 4: 0.6}, weight_decay=0.0),
        curve(1, 0.0, {2: 0.7, 4: 0.4}, weight_decay=0.1),
        curve(2, 0.1, {2: 0.8}, weight_decay=0.0),
        curve(3, 0.1, {2: 0.8}, weight_decay=0.1),
        curve(4, 0.1, {2: 0.8}, weight_decay=0.2),
    ]
    assert [one.score for one in at_the_end(trials)[2:]] == pytest.approx([0.7, 0.5, 0.6])


scores = st.integers(-64, 64).map(lambda quarter: quarter / 4)
curves = st.lists(
    st.tuples(st.integers(0, 4), st.lists(scores, max_size=5), st.booleans()), min_size=1, max_size=12
).map(
    lambda several: [
        curve(ticket, level / 4, dict(enumerate(values, start=1)), ended=ended)
        for ticket, (level, values, ended) in enumerate(several)
    ]
)


@repeatable
@given(curves, st.randoms(use_true_random=False))
def test_the_order_of_the_trials_does_not_matter_for_their_scores(several, random):
    """Each trial is worth the same, in whatever order they are listed."""
    mixed = random.sample(several, len(several))
    worth = {one.ticket: one.score for one in at_the_end(mixed)}
    for one in at_the_end(several):
        assert worth[one.ticket] == pytest.approx(one.score)


@repeatable
@given(curves, st.lists(st.integers(-8, 8), min_size=5, max_size=5))
def test_a_change_that_all_have_in_common_is_no_score(several, common):
    """If at some rung all values were higher by the same, all scores change by that of the last rung."""
    lifted = [
        dataclasses.replace(
            one,
            rungs={rung: value + common[rung - 1] for rung, value in one.rungs.items()},
            score=None if one.score is None else one.score + common[len(one.rungs) - 1],
        )
        for one in several
        if one.rungs
    ]
    longest = max((len(one.rungs) for one in several), default=0)
    after = at_the_end(lifted)
    for before, one in zip(at_the_end([one for one in several if one.rungs]), after, strict=True):
        if before.score is not None:
            assert one.score == pytest.approx(before.score + common[longest - 1])


@repeatable
@given(curves)
def test_a_trial_at_the_last_rung_keeps_its_score(several):
    """The longest trials, those that train and those without reports, are left as they were."""
    longest = max(len(one.rungs) for one in several)
    for before, after in zip(several, at_the_end(several), strict=True):
        if before.score is None or len(before.rungs) in (0, longest):
            assert after == before


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("rule", ["gp", "heuristic"])
def test_a_rule_finds_the_top_although_most_is_pruned(rule, maximize):
    """Two in three are pruned early, at values above all final ones; the search still closes in on the top.

    Four of the last eight proposals lie within a sixteenth of the range of it; of random ones, each so near
    with probability 1/8, four of eight do so once in 90 times.
    """
    space, top, sign = Space(0.0, 0.5), 0.3, 1 if maximize else -1
    running = search(rule, space, seed=0, maximize=maximize)
    for last in [8, 2, 4] * 5 + [8]:
        trial = running.ask()
        value = 1 - ((trial.params["level"] - top) / 0.5) ** 2
        for rung in (2, 4, 8):
            if rung <= last:
                trial.report(sign * (value - rung), rung)
        if last == 8:
            running.tell(trial, sign * (value - last))
        else:
            running.tell(trial, None, TrialState.PRUNED)
    distances = [abs(level - top) / 0.5 for (level,) in running.levels()[-8:]]
    assert sorted(distances)[3] <= 1 / 16


# --- the heuristic ---------------------------------------------------------------------------------------

UNIT = Space(0.0, 1.0)


def climb(scores: Sequence[float | None], space: Space = UNIT, **settings: float) -> list[float]:
    """Return the levels that the heuristic proposes, one after the other, when its proposals score so."""
    seen: list[Tried] = []
    levels = []
    for ticket, score in enumerate([*scores, None]):
        level = heuristic(space, seen, np.random.default_rng(0), **settings)["level"]
        levels.append(level)
        seen.append(tried(ticket, level, score))
    return levels


@pytest.mark.parametrize(
    ("scores", "levels"),
    [
        ([], [0.0]),
        ([0.5], [0.0, 0.25]),
        ([0.5, 0.6], [0.0, 0.25, 0.5]),  # up after a gain
        ([0.5, 0.6, 0.7], [0.0, 0.25, 0.5, 0.75]),  # and again
        ([0.5, 0.6, 0.7, 0.6], [0.0, 0.25, 0.5, 0.75, 0.25]),  # round after a loss, from the best one
        ([0.5, 0.6, 0.7, 0.6, 0.6], [0.0, 0.25, 0.5, 0.75, 0.25, 0.625]),  # half a step after two losses
        ([0.5, 0.6, 0.7, 0.6, 0.6, 0.8], [0.0, 0.25, 0.5, 0.75, 0.25, 0.625, 0.75]),  # on from there
        ([0.5, 0.6, 0.7, 0.8, 0.9], [0.0, 0.25, 0.5, 0.75, 1.0, 0.75]),  # back from the end of the range
    ],
)
def test_the_heuristic_climbs(scores, levels):
    """Up after a gain, round after a loss, half a step after losses on both sides, and never out of range."""
    assert climb(scores) == levels


def test_the_heuristic_takes_its_step_and_tolerance():
    """The first step is `step`, and a gain smaller than `tolerance` counts as a loss."""
    assert climb([0.5, 0.6], step=0.125) == [0.0, 0.125, 0.25]
    assert climb([0.5, 0.51], tolerance=0.0) == [0.0, 0.25, 0.5]
    assert climb([0.5, 0.51], tolerance=0.1)[-1] != 0.5


@repeatable
@given(
    scores=st.lists(st.integers(0, 8), max_size=12),
    shift=st.integers(0, 64),
    log_scale=st.integers(-6, 6),
    score_shift=st.integers(-8, 8),
    log_score_scale=st.integers(-3, 3),
)
def test_the_heuristic_does_not_know_units(scores, shift, log_scale, score_shift, log_score_scale):
    """Shifting and scaling the interval moves the proposals with it; of the scores it changes nothing."""
    scale = 2.0**log_scale  # exact in binary floats: the comparison sees no rounding
    space = Space(shift * scale, (shift + 1) * scale)
    moved = climb([score_shift + score * 2.0**log_score_scale for score in scores], space)
    assert moved == [(shift + level) * scale for level in climb([float(score) for score in scores])]


def test_a_pending_level_counts_as_a_loss():
    """Workers that ask while others train spread around the best level so far instead of repeating one."""
    done = [tried(0, 0.0, 0.5), tried(1, 0.25, 0.6), tried(2, 0.5, 0.7)]
    levels = []
    for ticket in range(3, 7):
        level = heuristic(UNIT, done, np.random.default_rng(0))["level"]
        levels.append(level)
        done.append(tried(ticket, level, None))
    assert levels == [0.75, 0.25, 0.625, 0.375]


def test_the_baseline_is_the_first_step_of_each_combination():
    """Level 0 has no settings of the schedule, and counts for all of them."""
    space = Space(0.0, 1.0, settings={"until_epoch": Choices(choices=(2, 4))})
    proposals = [heuristic(space, [tried(0, 0.0, 0.5)], np.random.default_rng(seed)) for seed in range(8)]
    assert {(one["until_epoch"], one["level"]) for one in proposals} == {(2, 0.25), (4, 0.25)}


def test_the_heuristic_refuses_a_range_beside_the_level():
    """It climbs the level only, so a range beside it is refused with the samplers that search it."""
    with pytest.raises(ValueError, match="search alpha with 'tpe', 'gp' or 'random'"):
        heuristic(RANGES["range"], [], np.random.default_rng(0))


def test_the_baseline_below_the_range_does_not_count():
    """With low above 0, the climb starts at low: level 0 is not in its range."""
    space = Space(2.0, 4.0)
    assert heuristic(space, [BASELINE], np.random.default_rng(0)) == {"level": 2.0}


def test_the_heuristic_climbs_each_combination_by_itself():
    """Scores of one choice say nothing about the levels of another."""
    space = Space(0.0, 1.0, choices={"weight_decay": (0.0, 0.1)})
    seen = [tried(0, 0.0, 0.5, weight_decay=0.0), tried(1, 0.25, 0.6, weight_decay=0.0)]
    proposals = [heuristic(space, seen, np.random.default_rng(seed)) for seed in range(12)]
    assert {(one["weight_decay"], one["level"]) for one in proposals} == {(0.0, 0.5), (0.1, 0.0)}


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"step": 0.0}, "step must be above 0, but is 0"),
        ({"tolerance": -0.1}, "tolerance must be at least 0, but is -0.1"),
    ],
    ids=str,
)
def test_the_heuristic_refuses_bad_settings(settings, bound):
    """A bad setting is refused with its name, bound and value."""
    with pytest.raises(ValueError, match=bound):
        heuristic(UNIT, [], np.random.default_rng(0), **settings)


def test_a_step_larger_than_the_range_stays_in_it():
    """Through the adapter even a far too large step gives levels in the range, all of them new."""
    running = search(functools.partial(heuristic, step=10.0), Space(1.0, 2.0))
    for _ in range(6):
        running.tell(running.ask(), 0.5)
    levels = [level for (level,) in running.levels()]
    assert all(1.0 <= level <= 2.0 for level in levels)
    assert len(set(levels)) == 6


# --- the space -------------------------------------------------------------------------------------------


@st.composite
def grids(draw) -> Space:
    low = draw(st.integers(0, 20))
    steps = draw(st.integers(1, 40))
    grid = tuple((low + step) / 10 for step in range(steps + 1))
    return Space(grid[0], grid[-1], grid=tuple(sorted({0.0, *grid})))


@repeatable
@given(grids(), st.floats(-1, 8), st.data())
def test_the_nearest_untried_level_of_a_grid(space, level, data):
    """It is on the grid, in the range, new, and none that is also new lies nearer; the higher one of two.

    If there is no new one, there is none.
    """
    candidates = [one for one in space.grid if space.low <= one <= space.high]
    gone = data.draw(st.lists(st.sampled_from(space.grid), unique=True))
    left = [one for one in candidates if one not in gone]
    found = space.nearest_untried(level, gone)
    inside = min(max(level, space.low), space.high)
    if not left:
        assert found is None
        return
    assert found in left
    assert abs(found - inside) == min(abs(one - inside) for one in left)
    assert found == max(one for one in left if abs(one - inside) == abs(found - inside))


@repeatable
@given(
    low=st.sampled_from([0.0, 0.1, 20.0]),
    width=st.sampled_from([0.001, 0.5, 30.0]),
    shares=st.lists(st.floats(0, 1), max_size=20),
    share=st.floats(-0.5, 1.5),
)
def test_the_nearest_untried_level_of_a_range(low, width, shares, share):
    """It is in the range and apart from all that were tried, and a level that is new stays as it is."""
    space = Space(low, low + width)
    gone = [low + one * width for one in shares]
    level = low + share * width
    found = space.nearest_untried(level, gone)
    closest = (space.high - space.low) / RESOLUTION / 2
    assert space.low <= found <= space.high
    assert all(abs(found - one) >= closest for one in gone)
    inside = min(max(level, space.low), space.high)
    if all(abs(inside - one) >= closest for one in gone):
        assert found == inside


def test_the_levels_of_a_fine_grid_can_be_told_apart():
    """On a grid finer than a thousandth of its range, a level beside a tried one is still new."""
    grid = tuple(index / 4000 for index in range(4001))
    space = Space(0.0, 1.0, grid=grid)
    assert space.nearest_untried(grid[1001], [grid[1000], grid[1002]]) == grid[1001]


@every_space
def test_level_zero_fits_every_distribution(space):
    """Optuna's range starts at 0 whatever `low` is, so that the baseline is a valid trial."""
    distributions = space.distributions()
    assert distributions["level"].low == 0.0
    assert distributions["level"].high == space.high
    assert distributions.keys() == {"level", *space.choices, *space.settings}


@pytest.mark.parametrize("space", [*SPACES.values(), *RANGES.values()], ids=[*SPACES, *RANGES])
def test_a_space_holds_what_it_draws_and_its_baselines(space):
    """What is drawn beside the level, and what a baseline has, is of the space; anything else is not."""
    drawn = [space.draw(np.random.default_rng(seed)) for seed in range(50)]
    assert all(space.holds(one) for one in [*drawn, *space.baselines()])
    distributions = space.distributions()
    assert all(distributions[name]._contains(distributions[name].to_internal_repr(value))
               for one in drawn for name, value in one.items())  # fmt: skip
    assert not space.holds({"dropout": 0.5})
    assert not any(space.holds({**one, "dropout": 0.5}) for one in drawn)
    for name, values in space.choices.items():
        assert {one[name] for one in drawn} == set(values)
        assert not space.holds({**drawn[0], name: 7.0})
    for name in space.ranges:
        assert len({one[name] for one in drawn}) > 40  # of 1001 steps
        assert not space.holds({**drawn[0], name: 7.0})


def test_a_range_is_drawn_by_its_logarithm_where_asked():
    """Half of the draws are below the geometric mean, and without `log` below the arithmetic one."""
    for log, middle in ((True, 0.1), (False, 0.505)):
        space = Space(0.0, 1.0, settings={"alpha": Range(low=0.01, high=1.0, log=log)})
        rng = np.random.default_rng(0)
        below = sum(space.draw(rng)["alpha"] < middle for _ in range(400))
        assert abs(below - 200) <= 2.58 * 10  # two-sided 99 % of 400 fair coins, whose deviation is 10


# --- the queue -------------------------------------------------------------------------------------------


@repeatable
@given(st.integers(1, 300))
def test_van_der_corput_order_is_spread(n):
    """A permutation, of which any first k leave no gap wider than four times n / k.

    The first 2 ** j of a power of two above n are evenly spaced, and each power is less than twice the last.
    """
    order = van_der_corput(n)
    assert sorted(order) == list(range(n))
    assert order[0] == 0
    for k in range(1, n + 1):
        places = [*sorted(order[:k]), n]
        gap = max(after - before for before, after in itertools.pairwise(places))
        assert gap <= 4 * n / k


def sampler_of(spec: Spec) -> RuleSampler:
    """Return what proposes the levels of a study, as plain Optuna asks it."""
    return RuleSampler(rule_of(spec), Space.of(spec), seed=spec.search.seed, maximize=spec.maximize)


def make(**changes: Any) -> Spec:
    return parse(merged(TINY, changes), KNOWN)


def test_a_grid_has_a_ticket_for_each_level():
    """Level 0 comes first, then each level of the grid once, spread over the range."""
    spec = make(levels={"count": 9, "high": 0.8})
    levels = [ticket["level"] for ticket in tickets(spec)]
    assert levels[0] == 0.0
    assert sorted(levels) == list(spec.levels.grid())
    assert sorted(levels[1:3]) == [0.1, 0.5]


def test_a_grid_with_choices_has_a_ticket_for_each_combination():
    """Level 0 comes first for every choice, and every pair of level and choice is there once."""
    spec = make(training={"weight_decay": {"choices": [0.0, 0.1]}})
    found = [(ticket["level"], ticket["weight_decay"]) for ticket in tickets(spec)]
    assert found[:2] == [(0.0, 0.0), (0.0, 0.1)]
    assert sorted(found) == [(level, choice) for level in (0.0, 0.25, 0.5) for choice in (0.0, 0.1)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_combination_of_recipe_fields_has_one_baseline(sampler):
    """Level 0 is trained once for every combination of recipe fields, first, whatever proposes the levels."""
    choices = {"weight_decay": {"choices": [0.0, 0.1]}, "learning_rate": {"choices": [0.01, 0.001]}}
    search = {"sampler": sampler} if SAMPLERS[sampler].fixed else {"sampler": sampler, "trials": 9}
    found = tickets(make(training=choices, search=search))
    baselines = [one for one in found if one is not None and one["level"] == 0]
    assert found[:4] == baselines
    pairs = {(one["weight_decay"], one["learning_rate"]) for one in baselines}
    assert pairs == set(itertools.product([0.0, 0.1], [0.01, 0.001]))


def test_a_baseline_has_no_settings_of_the_schedule():
    """They mean nothing at level 0, which is trained once for all of them."""
    spec = make(
        training={"schedule": "backward", "weight_decay": {"choices": [0.0, 0.1]}},
        backward={"until_epoch": {"choices": [2, 4]}},
    )
    found = [tuple(one.values()) for one in tickets(spec)]
    assert found[:2] == [(0.0, 0.0), (0.0, 0.1)]
    assert sorted(found[2:]) == sorted(itertools.product([0.25, 0.5], [0.0, 0.1], [2, 4]))


def test_an_adaptive_study_has_one_ticket_beside_its_baseline():
    """The run finds the level: the ticket holds the highest one that it may take."""
    adaptive = {"levels": None, "training": {"schedule": "adaptive"}}
    assert tickets(make(**adaptive)) == [{"level": 0.0}, {"level": 0.5}]
    adaptive["levels"] = {"high": 0.3, "count": None}
    adaptive["adaptive"] = {"alpha": {"choices": [0.01, 0.02]}}
    assert tickets(make(**adaptive)) == [
        {"level": 0.0},
        {"level": 0.3, "alpha": 0.01},
        {"level": 0.3, "alpha": 0.02},
    ]


def test_a_sampled_search_has_open_tickets():
    """Level 0 is fixed, and so many tickets are open that all together are `trials`."""
    changes = {"levels": {"count": None}, "search": {"sampler": "random", "trials": 5}}
    assert tickets(make(**changes)) == [{"level": 0.0}, None, None, None, None]


@repeatable
@given(
    trials=st.integers(2, 40), more=st.integers(0, 40), epochs=st.integers(10, 30), seeds=st.integers(2, 5)
)
def test_the_tickets_of_a_grown_study_begin_with_the_old_ones(trials, more, epochs, seeds):
    """More trials, epochs and seeds add tickets at the end and change none that was there."""

    def grown(trials: int, **training: int) -> list[Any]:
        search = {"sampler": "random", "trials": trials}
        return tickets(make(levels={"count": None}, search=search, training=training))

    before, after = grown(trials), grown(trials + more, epochs=epochs, seeds=seeds)
    assert after[: len(before)] == before
    assert len(after) == trials + more


@pytest.mark.parametrize("name", RULES)
def test_the_sampler_of_a_spec_proposes_in_its_space(name):
    """A spec's sampler, with settings from the file, gives levels of its grid through Optuna."""
    spec = make(levels={"low": 0.1, "count": 5}, search={"sampler": name, "trials": 5, "seed": 9})
    running = Search(sampler_of(spec))
    for _ in range(5):
        running.tell(running.ask(), 0.5)
    assert sorted(level for (level,) in running.levels()) == [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize("name", ["random", "tpe", "gp"])
def test_the_sampler_of_an_adaptive_study_searches_its_settings(name):
    """Where the run finds the level, a sampler proposes the schedule's settings at the highest level."""
    alpha = {"low": 0.005, "high": 0.03}
    spec = make(
        levels=None,
        training={"schedule": "adaptive"},
        search={"sampler": name, "trials": 12},
        adaptive={"alpha": alpha},
    )
    running = Search(sampler_of(spec))
    running.add({"level": 0.0}, 0.5)
    for _ in range(11):
        trial = running.ask()
        assert trial.params["level"] == 0.5
        assert schedule_settings(spec, trial.params) == {
            "until_accuracy": 1.0,
            "alpha": trial.params["alpha"],
        }
        running.tell(trial, trial.params["alpha"])
    assert schedule_settings(spec, {}) == {"until_accuracy": 1.0}
