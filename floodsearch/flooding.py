"""Flooding: |J - b| + b, the regulariser that keeps a training loss at a level b.

Source: Ishida, Yamane, Sakai, Niu, Sugiyama, "Do We Need Zero Training Loss After Achieving Zero Training
Error?", ICML 2020, equation (1). J is the mean loss of a mini-batch: the sign is decided for the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def check_level(level: float) -> float:
    """Return `level` as a float.

    Args:
        level: flood level b, in the unit of the loss; finite and at least 0.

    Raises:
        ValueError: if it is NaN, infinite or negative.
    """
    if not math.isfinite(level) or level < 0:
        raise ValueError(
            f"the flood level must be a finite number of at least 0, but is {level}; "
            "give it in the unit of the training loss, such as 0.1"
        )
    return float(level)


def flood(loss: Tensor, level: float) -> Tensor:
    """Flood a mini-batch loss: `(loss - level).abs() + level`.

    Above the level the gradient is the loss's own, below it the gradient is reversed. At level 0 this is
    the identity, also for a loss that can be negative, so that 0 always means "no flooding". (At
    `loss == level` PyTorch's `abs` has gradient 0.)

    Args:
        loss: (), the mean loss of one mini-batch, without penalty terms: add those to the result, or they
            are flooded too.
        level: flood level b >= 0, in the unit of `loss`.

    Returns:
        (), same dtype and device as `loss`.

    Raises:
        ValueError: if `loss` is not a scalar (flooding each sample is another method, whose levels differ),
            or the level is NaN, infinite or negative.

    Example:
        >>> flood(torch.tensor(0.05), 0.2)
        tensor(0.3500)
    """
    level = check_level(level)
    if loss.ndim != 0:
        raise ValueError(
            f"flood() takes the mean loss of a batch, a scalar, but got shape {tuple(loss.shape)}; "
            "average it first (reduction='mean')"
        )
    if level == 0:
        return loss
    return (loss - level).abs() + level


class FloodLoss(nn.Module):
    """A loss with flooding, in place of the loss that it wraps.

    It floods only while it trains. It is the plain loss in its own eval mode *and* whenever gradients are
    off, because people call `model.eval()` and seldom `criterion.eval()`.

    Args:
        criterion: a loss that averages over the batch, such as `nn.CrossEntropyLoss()`.
        level: flood level b >= 0, in the unit of that loss.

    Raises:
        ValueError: if the level is NaN, infinite or negative, or the criterion says that it sums or does
            not reduce: levels are per mean loss.

    Example:
        >>> criterion = FloodLoss(nn.CrossEntropyLoss(), level=0.1)
    """

    def __init__(self, criterion: nn.Module, level: float) -> None:
        super().__init__()
        reduction = getattr(criterion, "reduction", "mean")
        if reduction != "mean":
            raise ValueError(
                f"FloodLoss floods the mean loss of a batch, but {type(criterion).__name__} has "
                f"reduction={reduction!r}; give it reduction='mean'"
            )
        self.criterion = criterion
        self.level = check_level(level)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the criterion's loss of the batch, flooded while training."""
        loss: Tensor = self.criterion(*args, **kwargs)
        if not self.training or not torch.is_grad_enabled():
            return loss
        return flood(loss, self.level)

    def extra_repr(self) -> str:
        """Show the level in the module's representation."""
        return f"level={self.level:g}"
