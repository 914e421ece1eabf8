"""How numbers are computed: their format, the layout of images, and by which kernels.

All workers of a study compute alike, because each of these changes results by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from floodsearch.study.spec import Arithmetic


def choose_kernels(arithmetic: Arithmetic) -> None:
    """Let torch choose the kernels of a study on this process's GPU.

    By torch's older names: of the newer ones `torch.compile` complains in some versions.
    """
    tf32 = arithmetic.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32  # torch's own default is to round convolutions to TF32
    torch.backends.cudnn.deterministic = arithmetic.deterministic
    torch.backends.cudnn.benchmark = not arithmetic.deterministic


def lay_out(model: nn.Module, arithmetic: Arithmetic) -> nn.Module:
    """Return a model with its weights in the layout of a study."""
    return model.to(memory_format=torch.channels_last) if arithmetic.channels_last else model


class Forward:
    """A model's outputs, computed as a study wants them.

    Args:
        model: to be called.
        arithmetic: of the study.
        compiled: whether to call it as `torch.compile` makes it, where the study wants that.
    """

    def __init__(self, model: nn.Module, arithmetic: Arithmetic, *, compiled: bool = True) -> None:
        self.arithmetic = arithmetic
        self._call: Callable[[Tensor], Any] = model
        if compiled and arithmetic.compile != "off":
            # Shapes are those of a batch and of the last one, which may be smaller: kernels for each.
            self._call = torch.compile(model, mode=arithmetic.compile, dynamic=False)

    def __call__(self, inputs: Tensor) -> Any:
        """Return the outputs for a batch of inputs (see `compute`)."""
        if self.arithmetic.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return compute(lambda: self._call(inputs), self.arithmetic, inputs.device)


def compute(outputs: Callable[[], Any], arithmetic: Arithmetic, device: torch.device) -> Any:
    """Return a model's outputs, computed in a study's precision, as float32: a loss has no coarser scale."""
    if arithmetic.precision != "bf16":
        return outputs()
    with torch.autocast(device.type, torch.bfloat16):
        found = outputs()
    return found.float() if isinstance(found, Tensor) and found.dtype == torch.bfloat16 else found
