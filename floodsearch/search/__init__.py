"""What to try next and what to stop: pure rules of our own records, and adapters for plain Optuna.

A study of plain Optuna takes its sampler, its pruner and what they are made of from here. The names are
resolved when they are first used, so that a part of this package imports no more than it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from floodsearch.search.plain_optuna import JudgePruner, RuleSampler
    from floodsearch.search.pruners import successive_halving
    from floodsearch.search.samplers import gp, heuristic, random, tpe
    from floodsearch.search.space import Space
    from floodsearch.study.spec import Training

__all__ = [
    "JudgePruner",
    "RuleSampler",
    "Space",
    "Training",
    "gp",
    "heuristic",
    "random",
    "successive_halving",
    "tpe",
]

_HOMES = {
    "JudgePruner": "floodsearch.search.plain_optuna",
    "RuleSampler": "floodsearch.search.plain_optuna",
    "Space": "floodsearch.search.space",
    "Training": "floodsearch.study.spec",
    "gp": "floodsearch.search.samplers",
    "heuristic": "floodsearch.search.samplers",
    "random": "floodsearch.search.samplers",
    "successive_halving": "floodsearch.search.pruners",
    "tpe": "floodsearch.search.samplers",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'floodsearch.search' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
