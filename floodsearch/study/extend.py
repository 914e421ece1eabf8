"""How a study may be launched again: its budget may grow, and nothing else may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from floodsearch.study.spec import Spec, default_validate_every


def differences(stored: Spec, wanted: Spec) -> list[str]:
    """Return the settings that forbid continuing `stored` as `wanted`, each a line with both values.

    Growing the budget is no difference: more trials, more seeds after the ones there are, more epochs, and
    any change of `[budget]`. Nor are `keep` and `[log]`, which change no result: they hold for what comes;
    nor what becomes of a script's process that pauses. Nor is a default that grows with the epochs. Where
    runs may end early the epochs are fixed: a run that has ended is trained no further.
    """
    old, new = (_flat(spec.model_dump(mode="json")) for spec in (stored, wanted))
    grown = {"training.keep", "script.pause", "script.stopped"} | (
        {"training.validate_every"} if _validates_by_default(stored, wanted) else set()
    )
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after or key.startswith(("budget.", "log.")) or key in grown:
            continue
        if key in ("search.trials", "training.epochs") and before is not None and after is not None:
            if after < before:
                found.append(f"{key}: {before} before, {after} now; it can only grow")
            elif key == "training.epochs" and stored.training.early_stopping != "none":
                found.append(f"{key}: {before} before, {after} now; where runs may end early it cannot grow")
        elif key == "training.seeds" and before and after and after[: len(before)] == before:
            continue
        else:
            found.append(f"{key}: {_shown(before)} before, {_shown(after)} now")
    return found


def _validates_by_default(*specs: Spec) -> bool:
    """Return whether these are trainings of a task, validated as where nothing is said."""
    return all(
        one.task is not None and one.training.validate_every == default_validate_every(one.training.epochs)
        for one in specs
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
