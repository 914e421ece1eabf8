"""Which trials to stop: pruners by the name that a study file uses.

An entry makes an Optuna pruner for runs of `epochs` epochs that report at `rungs`. Pruners are asked at rungs
only, because some of them read every curve of the study on every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner

PrunerFactory = Callable[..., BasePruner]


def median(epochs: int, rungs: Sequence[int], *, startup: int = 5, warmup: int = 0) -> BasePruner:
    """Stop what is worse than the median of the complete trials.

    Optuna compares each trial's *best* value so far, which is blind to much of what flooding does late in a
    run: it saves little here.

    Args:
        epochs: length of a run.
        rungs: the epochs at which trials report.
        startup: complete trials before anything is stopped.
        warmup: epochs of a trial before it may be stopped.
    """
    del epochs, rungs
    _at_least(0, startup=startup, warmup=warmup)
    return MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)


def hyperband(
    epochs: int, rungs: Sequence[int], *, first: int | None = None, reduction: int = 3
) -> BasePruner:
    """Stop by Hyperband: successive halving in several brackets, each trial against earlier ones.

    Args:
        epochs: length of a run.
        rungs: the epochs at which trials report.
        first: epoch of the first decision; the first rung by default.
        reduction: one in this many goes on.
    """
    first = rungs[0] if first is None else first
    _at_least(1, first=first)
    _at_least(2, reduction=reduction)
    if first > epochs:
        raise ValueError(f"first must be at most the {epochs} epochs, but is {first}")
    # Given as numbers: Optuna's "auto" is guessed by each process from what it happens to see first.
    return HyperbandPruner(min_resource=first, max_resource=epochs, reduction_factor=reduction)


def none(epochs: int, rungs: Sequence[int]) -> BasePruner:
    """Stop nothing."""
    del epochs, rungs
    return NopPruner()


def _at_least(bound: int, **values: int) -> None:
    for name, value in values.items():
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, but is {value}")


PRUNERS: Mapping[str, PrunerFactory] = {"median": median, "hyperband": hyperband, "none": none}
