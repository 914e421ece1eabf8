"""Flooding: |J - b| + b, the regulariser that keeps a training loss at a level b.

Source: Ishida, Yamane, Sakai, Niu, Sugiyama, "Do We Need Zero Training Loss After Achieving Zero Training
Error?", ICML 2020, equation (1). J is the mean loss of a mini-batch: the sign is decided for the batch.

Two later forms decide it for each sample. They are other methods, whose levels do not transfer:
iFlood (Xie et al., "iFlood: A Stable and Effective Regularizer", ICLR 2022), the mean of |l_i - b| + b, here
`per="sample"`; and SoftAD (Holland and Nakatani, "Soft ascent-descent as a stable and flexible alternative to
flooding", NeurIPS 2024), b + the mean of rho(l_i - b) with rho(x) = sqrt(x^2 + 1) - 1, here
`per="sample", form="soft"`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, distributed, nn

Per = Literal["batch", "sample"]
Form = Literal["abs", "soft"]


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


def flood(
    loss: Tensor,
    level: float | Tensor,
    *,
    per: Per = "batch",
    form: Form = "abs",
    across_ranks: bool = False,
) -> Tensor:
    """Flood the loss of a mini-batch: `(loss - level).abs() + level`.

    Above the level the gradient is the loss's own, below it the gradient is reversed. At level 0 this is
    the identity (of the mean, per sample), also for a loss that can be negative, so that 0 always means "no
    flooding". (At `loss == level` PyTorch's `abs` has gradient 0.)

    Args:
        loss: (), the mean loss of one mini-batch, without penalty terms: add those to the result, or they
            are flooded too. Per sample: (n,), the loss of each.
        level: flood level b >= 0, in the unit of `loss`. As a tensor, () or per sample also (n,), it is not
            looked at, which would wait for its device: negative or NaN values are not found.
        per: what the sign is decided for. `sample` is iFlood, whose levels are not those of flooding.
        form: `abs`, or `soft` for SoftAD, which is per sample.
        across_ranks: decide the sign for the mean over all ranks of `torch.distributed` (see
            `mean_over_ranks`) instead of the local batch. All ranks must call it, at the same level.

    Returns:
        (), same dtype and device as `loss`.

    Raises:
        ValueError: if `loss` has another shape, the level is NaN, infinite or negative, or the sign is to be
            decided both per sample and across ranks.

    Example:
        >>> flood(torch.tensor(0.05), 0.2)
        tensor(0.3500)
    """
    _check_method(per, form)
    _check_shapes(loss, level, per)
    if not isinstance(level, Tensor):
        level = check_level(level)
        if level == 0:
            return loss if per == "batch" else loss.mean()
    if across_ranks and per == "sample":
        raise ValueError("across_ranks decides the sign for a mean; leave it out with per='sample'")
    loss = mean_over_ranks(loss) if across_ranks else loss
    above = loss - level
    flooded = (above.abs() if form == "abs" else (above.square() + 1).sqrt() - 1) + level
    if isinstance(level, Tensor):
        flooded = torch.where(level == 0, loss, flooded)
    return flooded if per == "batch" else flooded.mean()


def mean_over_ranks(loss: Tensor) -> Tensor:
    """Return a loss with the value of its mean over all ranks and the gradient of the local one.

    Under `DistributedDataParallel`, which averages gradients, flooding it is flooding the loss of the whole
    batch. Without an initialised `torch.distributed` it is the loss itself.

    Args:
        loss: (), the mean loss of this rank's part of the batch; all parts of one size.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return loss
    mean = loss.detach().clone()
    distributed.all_reduce(mean)
    return mean / distributed.get_world_size() + (loss - loss.detach())


def _check_method(per: str, form: str) -> None:
    if per not in ("batch", "sample") or form not in ("abs", "soft"):
        raise ValueError(
            f"per must be 'batch' or 'sample' and form 'abs' or 'soft', but are {per!r}, {form!r}"
        )
    if form == "soft" and per == "batch":
        raise ValueError("form='soft' is SoftAD, which decides per sample; add per='sample'")


def _check_shapes(loss: Tensor, level: float | Tensor, per: Per) -> None:
    if per == "batch" and loss.ndim != 0:
        raise ValueError(
            f"flood() takes the mean loss of a batch, a scalar, but got shape {tuple(loss.shape)}; "
            "average it first (reduction='mean'), or say per='sample', which is another method"
        )
    if per == "sample" and loss.ndim != 1:
        raise ValueError(
            f"flood(per='sample') takes the loss of each sample, (n,), but got shape {tuple(loss.shape)}; "
            "do not reduce it (reduction='none'), but average it over all but the batch"
        )
    if isinstance(level, Tensor) and level.ndim != 0 and level.shape != loss.shape:
        raise ValueError(f"a level of shape {tuple(level.shape)} does not fit a loss of {tuple(loss.shape)}")


class FloodLoss(nn.Module):
    """A loss with flooding, in place of the loss that it wraps.

    It floods only while it trains. It is the plain loss in its own eval mode *and* whenever gradients are
    off, because people call `model.eval()` and seldom `criterion.eval()`.

    The level is in the unit of the mean loss of a sample, however the criterion reduces: one that averages is
    flooded as it is; of one that sums, the mean over the batch size of the target is, and is summed again;
    one that does not reduce is averaged, or flooded per sample, and a scalar while training.

    Under gradient accumulation the sign is decided for each micro-batch.

    Args:
        criterion: such as `nn.CrossEntropyLoss()`; called with the target as its second argument, or by the
            name `target`.
        level: flood level b >= 0; as a tensor, () or (n,), not looked at (see `flood`).
        per: what the sign is decided for; `sample` (iFlood) needs a criterion with `reduction="none"`.
        form: `abs`, or `soft` for SoftAD, which is per sample.

    Raises:
        ValueError: if the level is NaN, infinite or negative, or the criterion's reduction does not fit.

    Example:
        >>> criterion = FloodLoss(nn.CrossEntropyLoss(), level=0.1)
    """

    level: float | Tensor

    def __init__(
        self, criterion: nn.Module, level: float | Tensor, *, per: Per = "batch", form: Form = "abs"
    ) -> None:
        super().__init__()
        _check_method(per, form)
        # A criterion of the user's own has none; what it returns shows whether it fits.
        self.reduction: str | None = getattr(criterion, "reduction", None)
        if per == "sample" and self.reduction not in ("none", None):
            raise ValueError(
                f"FloodLoss(per='sample') floods the loss of each sample, but {type(criterion).__name__} has "
                f"reduction={self.reduction!r}; give it reduction='none'"
            )
        self.criterion, self.per, self.form = criterion, per, form
        if isinstance(level, Tensor):
            self.register_buffer("level", level, persistent=False)  # moves to a device with the module
        else:
            self.level = check_level(level)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the criterion's loss of the batch, flooded while training.

        Raises:
            ValueError: if the criterion sums and the batch size cannot be seen from a target.
        """
        loss: Tensor = self.criterion(*args, **kwargs)
        if not self.training or not torch.is_grad_enabled():
            return loss
        if self.per == "sample":
            each = loss.flatten(1).mean(1) if loss.ndim > 1 else loss
            return flood(each, self.level, per="sample", form=self.form)
        if self.reduction == "sum":
            n = _batch_size(args, kwargs)
            return flood(loss / n, self.level) * n
        return flood(loss.mean() if self.reduction == "none" else loss, self.level)

    def extra_repr(self) -> str:
        """Show the level in the module's representation."""
        level = f"of shape {tuple(self.level.shape)}" if isinstance(self.level, Tensor) else f"{self.level:g}"
        return f"level={level}" + ("" if self.per == "batch" else f", per='sample', form={self.form!r}")


def _batch_size(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> int:
    target = kwargs.get("target", args[1] if len(args) > 1 else None)
    if not isinstance(target, Tensor) or target.ndim == 0:
        raise ValueError(
            "FloodLoss floods a mean, and its criterion sums: the batch size is taken from the target, the "
            "second argument, which must be a tensor of (n, ...); or give the criterion reduction='mean'"
        )
    return len(target)
