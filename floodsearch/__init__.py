"""floodsearch finds the flood level b of |J - b| + b for your model and data.

The public names are resolved when they are first used, so that `import floodsearch` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from floodsearch.asking import Answer, best, curves, trials
    from floodsearch.flooding.loss import FloodLoss, flood
    from floodsearch.launchers.api import launch
    from floodsearch.training.loop import LoopRun

__all__ = ["Answer", "FloodLoss", "LoopRun", "best", "curves", "flood", "launch", "trials"]

_HOMES = {
    "Answer": "floodsearch.asking",
    "FloodLoss": "floodsearch.flooding.loss",
    "LoopRun": "floodsearch.training.loop",
    "best": "floodsearch.asking",
    "curves": "floodsearch.asking",
    "flood": "floodsearch.flooding.loss",
    "launch": "floodsearch.launchers.api",
    "trials": "floodsearch.asking",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'floodsearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
