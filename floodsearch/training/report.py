"""What a training loop of the user's own reports of an epoch: checked, and made a record."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from floodsearch.errors import DivergedError, LoopError
from floodsearch.records import LARGEST, REPORTED, EpochRecord
from floodsearch.training.progress import RunPlan


def read_report(
    plan: RunPlan,
    metrics: Mapping[str, Any],
    *,
    seed: int,
    epoch: int,
    level: float,
    train_loss: float | None,
    flooded: float | None,
) -> EpochRecord:
    """Return the record of an epoch.

    Args:
        plan: says when the study's metric is due.
        metrics: what was reported, by the names that the user gave.
        seed: of the run.
        epoch: that was reported.
        level: of the run, in the unit of the loss.
        train_loss: mean plain loss of the batches that were flooded, taken where none is reported; None if
            there were none.
        flooded: share of the batches below the level; None if that is not known.

    Raises:
        LoopError: if a name is not one that the study knows, a value is no number, or the metric is missing.
        DivergedError: if a number is NaN or infinite.
    """
    _check_names(metrics, plan.metric)
    values = {name: _number(name, value) for name, value in metrics.items()}
    if train_loss is not None:
        values.setdefault("train_loss", train_loss)
    check_finite(values, metrics, level=level, epoch=epoch, seed=seed)
    if plan.due(epoch) and plan.metric not in values:
        every = plan.validate_every
        when = "each epoch" if every == 1 else f"every {every} epochs and at the last"
        raise LoopError(
            f"epoch {epoch} was reported without {plan.metric}, the study's metric; report it at {when}"
        )
    if plan.metric in values and plan.metric not in REPORTED:
        values["metric"] = values.pop(plan.metric)
    known_or_not: dict[str, float | None] = {"train_loss": None, "train_accuracy": None, **values}
    return EpochRecord(seed=seed, epoch=epoch, level=level, flooded=flooded, **known_or_not)


def check_finite(
    values: Mapping[str, float], reported: Collection[str], *, level: float, epoch: int, seed: int
) -> None:
    """Raise a DivergedError, of a run and an epoch, for a value that is NaN or infinite.

    Args:
        values: by name.
        reported: the names of those that the user gave; any other is of the loss.
        level: of the run, in the unit of the loss.
        epoch: that the values are of.
        seed: of the run.
    """
    for name, value in values.items():
        if not abs(value) <= LARGEST:
            what = f"the reported {name}" if name in reported else "the loss"
            raise DivergedError(level=level, epoch=epoch, step=None, seed=seed, what=what)


def _check_names(metrics: Mapping[str, Any], metric: str) -> None:
    """Raise a LoopError for a name that a study with this metric does not know."""
    known = (*REPORTED, metric)
    for name in metrics:
        if name in ("epoch", "step"):
            raise LoopError(
                f"run.report() was given {name} = {metrics[name]!r}, but run.epochs() counts them; "
                "leave it out"
            )
        if name not in known:
            raise LoopError(
                f"run.report() was given {name!r}, which this study does not know; it knows "
                f'{", ".join(dict.fromkeys(known))}; to search by it, write metric = "{name}" in [search]'
            )


def _number(name: str, value: Any) -> float:
    """Return a reported number; one on another device is waited for."""
    if hasattr(value, "__float__") and not isinstance(value, bool) and getattr(value, "shape", ()) == ():
        try:
            return float(value)
        except OverflowError:  # a whole number beyond all others
            return math.inf
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    raise LoopError(f"run.report({name}=...) was given a {type(value).__name__}{shape}, not a number")
