"""Runs of a user's loop depend on their seed and level, and on nothing else: what shows that they do not.

Two runs of one level and different seeds differ. Two runs of one seed are one run until the first batch whose
loss is below the level of either. What is trained in a run is trained in no other. A loop that breaks one of
these gets a wrong answer without a word, so the first pair of runs that shows it ends the search.

Rounding is no proof. Where two runs part by rounding alone, as with atomics on a GPU, they part in the last
digits, and the difference grows from batch to batch. So the first number that differs tells: if it does by
more than rounding, something else than the level was different. Off a CPU a whole epoch may lie between two
reports, so that only batches are compared there.
"""

from __future__ import annotations

import contextlib
import weakref
from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from floodsearch.records import EpochRecord

BATCHES = 2000
"""The first so many losses of a run are compared, and kept for it: 16 KB."""
GROUPS = 8
"""Combinations of settings whose runs are kept to be compared with, the last ones that began."""
ON_A_CPU, ELSEWHERE = 1e-4, 1e-2
"""Relative differences that rounding makes between two runs that were equal up to the batch before: on a CPU
none, or that of a few operations in float32 (1e-7 each); elsewhere that of one number in bf16 (4e-3)."""
PROOF = 6
"""So many numbers that two seeds share, each counted once, are no chance; one of many digits counts twice."""
COARSE = 1000
"""A share of at most so many samples is a number of few digits, and so are three decimals."""
COMPARED = ("val_loss", "val_accuracy", "train_accuracy", "test_loss", "test_accuracy", "metric")

Name = tuple[Literal["object", "memory"], int]
"""Of something that a run trains, while it lives: its identity, or where its numbers lie."""


class RunKey(NamedTuple):
    """The identity of a run in its study."""

    beside: Hashable
    """What is set beside the level."""
    epochs: int
    level: float
    seed: int


class Shown(NamedTuple):
    """The record of one epoch of a run, with the losses of its batches."""

    record: EpochRecord
    losses: Sequence[float] = ()
    """The plain losses of its batches, in their order; none where they are not known."""


Kind = Literal["seed not used", "level not used", "not independent", "evaluation"]


class Finding(NamedTuple):
    """A pair of runs that depend on something else than their seed and level, or not on these."""

    kind: Kind
    other: RunKey
    where: str
    """The first number that differs although it must not; "" where too much is equal."""


@dataclass
class _Begun:
    """A run in training, as far as it was compared with earlier ones: of its seed, and of its level.

    Attributes:
        first: whether later runs may be compared with it when it has ended.
        over: whether it has come to its end.
        differs: whether it was another run than that of its seed, and nobody has seen the batches of either,
            or it went on where that had ended.
    """

    first: bool
    shown: list[Shown] = field(default_factory=list)
    epoch: int = 0
    batches: int = 0
    of_seed: RunKey | None = None
    of_level: RunKey | None = None
    over: bool = False
    differs: bool = False
    shared: set[float] = field(default_factory=set)


class Comparison:
    """Compares the runs of a process with those that it began earlier, epoch by epoch.

    A run takes part from its first epoch on, as long as no epoch of it is trained elsewhere in between.

    Args:
        device: on which all of them are trained.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_a_cpu = device.type == "cpu"
        self.rounding = ON_A_CPU if self.on_a_cpu else ELSEWHERE
        self._groups: dict[tuple[Hashable, int], dict[RunKey, _Begun]] = {}

    def note(self, key: RunKey, shown: Shown) -> Finding | None:
        """Take in an epoch of a run; return what is wrong with it beside an earlier run, or None."""
        runs = self._group(key)
        if shown.record.epoch == 1:
            runs[key] = self._begin(key, runs)
        run = runs.get(key)
        if run is None or run.epoch != shown.record.epoch - 1:
            runs.pop(key, None)
            return None
        run.epoch += 1
        run.over = run.epoch == key.epochs
        shown = Shown(shown.record, array("d", shown.losses[: BATCHES - run.batches]))
        run.batches += len(shown.losses)
        run.shown.append(shown)
        found = self._beside_its_seed(run, runs) or (self._level_not_used(run, runs) if run.over else None)
        return found or self._beside_its_level(key, run, runs)

    def end(self, key: RunKey) -> Finding | None:
        """Take it that a run has ended before its last epoch; return what is wrong with it, or None."""
        runs = self._group(key)
        if (run := runs.get(key)) is None:
            return None
        run.over = True
        return self._level_not_used(run, runs)

    def differs(self, key: RunKey) -> bool | None:
        """Return whether a run whose batches nobody sees is another than one of its seed.

        None where there is none to compare it with.
        """
        run = self._groups.get((key.beside, key.epochs), {}).get(key)
        return None if run is None or not (run.differs or run.of_seed) else run.differs

    def is_unmoved(self, key: RunKey) -> bool:
        """Return whether a run has flooded in its first epoch, and is that of level 0 in its second, too.

        The first batch that is flooded moves the weights another way, so that later numbers differ.
        """
        runs = self._group(key)
        run, plain = runs.get(key), runs.get(key._replace(level=0.0))
        if run is None or plain is None or run is plain or run.epoch != 2 or plain.epoch < 2:
            return False
        equal = bool(run.shown[0].record.flooded) and all(map(same, run.shown, plain.shown))
        return equal and weight(_all(run)) >= PROOF

    def _group(self, key: RunKey) -> dict[RunKey, _Begun]:
        group = key.beside, key.epochs
        if group not in self._groups and len(self._groups) == GROUPS:
            del self._groups[next(iter(self._groups))]
        return self._groups.setdefault(group, {})

    @staticmethod
    def _begin(key: RunKey, runs: dict[RunKey, _Begun]) -> _Begun:
        # Of complete runs only the first of each level and the lowest of each seed are compared with later.
        for other in [other for other, run in runs.items() if run.over and not run.first]:
            del runs[other]
        others = [other for other in runs if other != key]
        of_seed = [other for other in others if other.seed == key.seed]
        # The unflooded run is comparable for longest.
        lowest = min(of_seed, key=lambda other: other.level, default=None)
        of_level = next((other for other in others if other.level == key.level), None)
        first = of_level is None or lowest is None or key.level < lowest.level
        return _Begun(first, of_seed=lowest, of_level=of_level)

    def _beside_its_seed(self, run: _Begun, runs: dict[RunKey, _Begun]) -> Finding | None:
        """Compare a run with one of its seed and another level: equal, until one of them floods."""
        other = None if run.of_seed is None else runs.get(run.of_seed)
        if run.of_seed is None or other is None or other.epoch < run.epoch:
            run.of_seed, run.differs = None, run.differs or (other is not None and other.over)
            return None
        new, known, beside = run.shown[-1], other.shown[run.epoch - 1], run.of_seed
        if new.record.flooded is None:  # nobody has seen its batches: only its numbers say whether it floods
            if reports_parted(new.record, known.record, 0.0 if self.on_a_cpu else self.rounding):
                run.of_seed, run.differs = None, True
            return None
        kind: Kind = "not independent"
        parted = batches_parted(new, known, self.rounding)
        if parted is None and self.on_a_cpu:
            kind = "evaluation" if new.losses and known.losses else kind
            parted = reports_parted(new.record, known.record, self.rounding)
        if parted is None:
            return None
        run.of_seed = None
        return Finding(kind, beside, parted) if parted else None

    @staticmethod
    def _level_not_used(run: _Begun, runs: dict[RunKey, _Begun]) -> Finding | None:
        """Return that a run at its end, whose batches nobody has seen, is that of its seed at level 0."""
        other = None if run.of_seed is None else runs.get(run.of_seed)
        if run.of_seed is None or other is None or run.of_seed.level > 0 or other.epoch != run.epoch:
            return None
        if run.shown[-1].record.flooded is not None or not other.over or weight(_all(run)) < PROOF:
            return None
        return Finding("level not used", run.of_seed, "")

    @staticmethod
    def _beside_its_level(key: RunKey, run: _Begun, runs: dict[RunKey, _Begun]) -> Finding | None:
        """Compare a run with one of its level and another seed: not equal in every number."""
        other = None if run.of_level is None else runs.get(run.of_level)
        if run.of_level is None or other is None or other.epoch < run.epoch:
            run.of_level = None
            return None
        new = run.shown[-1]
        if not same(new, other.shown[run.epoch - 1]):
            run.of_level = None
            return None
        run.shared |= numbers(new)
        if run.epoch < min(2, key.epochs) or weight(run.shared) < PROOF:
            return None
        return Finding("seed not used", run.of_level, "")


def _all(run: _Begun) -> set[float]:
    return set().union(*map(numbers, run.shown))


def same(one: Shown, other: Shown) -> bool:
    """Return whether an epoch of two runs is the same in every number."""
    return tuple(one.losses) == tuple(other.losses) and _reported(one) == _reported(other)


def _reported(shown: Shown) -> tuple[float | None, ...]:
    return tuple(getattr(shown.record, name) for name in ("train_loss", *COMPARED))


def numbers(shown: Shown) -> set[float]:
    """Return the distinct numbers of an epoch."""
    return {*shown.losses, *(number for number in _reported(shown) if number is not None)}


def weight(shared: set[float]) -> int:
    """Return the weight of numbers that two runs share, as proof: two for each of many digits, else one."""
    return sum(1 if _is_coarse(number) else 2 for number in shared)


def _is_coarse(number: float) -> bool:
    """Return whether a number is a share of few samples, or has few digits."""
    return abs(Fraction(number).limit_denominator(COARSE) - Fraction(number)) < 1e-7


def batches_parted(one: Shown, other: Shown, rounding: float) -> str | None:
    """Return the first batch of an epoch at which two runs of one seed part that were equal before.

    Args:
        one: of either run.
        other: the same epoch of the other.
        rounding: relative; numbers that are nearer part by rounding.

    Returns:
        The first loss that differs although neither run has flooded; "" where they part by rounding, or may
        part because one of them floods; None where they are equal.
    """
    highest, scale = max(one.record.level, other.record.level), 0.0
    for batch, losses in enumerate(zip(one.losses, other.losses, strict=False), start=1):
        scale = max(scale, *map(abs, losses))
        if losses[0] != losses[1]:
            beyond = abs(losses[0] - losses[1]) > rounding * scale
            return _told(f"the loss of batch {batch}", losses) if beyond else ""
        if highest > 0 and losses[0] <= highest * (1 + rounding):
            return ""
    counted = one.losses and other.losses and len(one.losses) != len(other.losses)
    return "" if counted or one.record.flooded != 0 or other.record.flooded != 0 else None


def reports_parted(one: EpochRecord, other: EpochRecord, rounding: float) -> str | None:
    """Return the first reported number that differs; "" where they do by rounding only, None if none does."""
    parted = None
    for name in COMPARED:
        pair = getattr(one, name), getattr(other, name)
        if None in pair or pair[0] == pair[1]:
            continue
        if abs(pair[0] - pair[1]) > rounding * max(map(abs, pair)):
            return _told(name, pair)
        parted = ""
    return parted


def _told(what: str, pair: tuple[float, float]) -> str:
    return f"{what}, {pair[1]:.6g} and {pair[0]:.6g}"


class Owners:
    """The runs that train objects, such as models; no object is kept alive by it."""

    def __init__(self) -> None:
        self._owners: dict[Name, tuple[weakref.ref[object], RunKey]] = {}

    def claim(self, one: object, key: RunKey) -> RunKey | None:
        """Give an object, with what is trained in it, to a run; return whose it is if it is another's."""
        for name, part in _parts(one):
            reference, owner = self._owners.get(name, (None, key))
            if owner != key and reference is not None and _still(name, reference()):
                return owner
            with contextlib.suppress(TypeError):  # not every object can be referred to weakly
                self._owners[name] = weakref.ref(part, self._forgetting(name)), key
        return None

    def _forgetting(self, name: Name) -> Callable[[object], None]:
        def forget(reference: object) -> None:
            if self._owners.get(name, (None,))[0] is reference:
                del self._owners[name]

        return forget


def _parts(one: object) -> Iterator[tuple[Name, object]]:
    """Yield an object and the parameters that are trained in it, each by what names it while it lives.

    Torch's own generator is lent to every run. Parameters that are not trained may be shared, and what a
    trainer trains is its `model`.
    """
    if one is torch.default_generator:
        return
    yield ("object", id(one)), one
    model = one if isinstance(one, nn.Module) else getattr(one, "model", None)
    for parameter in model.parameters() if isinstance(model, nn.Module) else ():
        if parameter.requires_grad:
            yield ("memory", _address(parameter) or id(parameter)), parameter


def _address(parameter: object) -> int:
    """Return the address of a parameter's memory, which others may share; 0 if it has none."""
    try:
        return parameter.untyped_storage().data_ptr() if isinstance(parameter, Tensor) else 0
    except Exception:  # whatever kind of tensor it is: one without memory has no address
        return 0


def _still(name: Name, part: object) -> bool:
    """Return whether an object lives, and is what it was when it was named: a parameter may have moved."""
    kind, number = name
    return part is not None and (kind == "object" or number in (_address(part), id(part)))
