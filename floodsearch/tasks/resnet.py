"""Residual networks for images of about 32 x 32 pixels.

Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. ResNet-44 is that of
its section 4.2 for CIFAR-10: 16, 32 and 64 channels, and shortcuts without parameters (option A: every second
pixel, new channels zero), which is how it has 0.66 M. ResNet-18 and ResNet-34 are those of its table 1, with
projections where the shape changes (option B), and with the stem that is usual for small images: 3 x 3
pixels instead of 7 x 7 with stride 2 and pooling. They have 11.2 M and 21.3 M parameters for ten classes.
Convolutions begin normally distributed, with the variance of He et al. 2015 by the fan-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional


def resnet18(channels: int, classes: int) -> nn.Sequential:
    """Return ResNet-18: (n, channels, height, width) to (n, classes)."""
    return _resnet(channels, classes, blocks=(2, 2, 2, 2), width=64, projection=True)


def resnet34(channels: int, classes: int) -> nn.Sequential:
    """Return ResNet-34: (n, channels, height, width) to (n, classes)."""
    return _resnet(channels, classes, blocks=(3, 4, 6, 3), width=64, projection=True)


def resnet44(channels: int, classes: int) -> nn.Sequential:
    """Return ResNet-44: (n, channels, height, width) to (n, classes)."""
    return _resnet(channels, classes, blocks=(7, 7, 7), width=16, projection=False)


def _resnet(
    channels: int, classes: int, *, blocks: Sequence[int], width: int, projection: bool
) -> nn.Sequential:
    """Return a residual network; each stage after the first halves the image and doubles the channels.

    Args:
        channels: of the image.
        classes: outputs.
        blocks: of each stage.
        width: channels of the first stage.
        projection: whether shortcuts that change the shape have parameters.
    """
    widths = [width * 2**stage for stage in range(len(blocks))]
    layers: list[nn.Module] = [_convolution(channels, width, stride=1), nn.BatchNorm2d(width), nn.ReLU()]
    for before, (after, depth) in zip([width, *widths], zip(widths, blocks, strict=True), strict=False):
        for fan_in, fan_out in pairwise([before] + [after] * depth):
            stride = 1 if fan_in == fan_out else 2
            layers.append(_Block(fan_in, fan_out, stride=stride, projection=projection))
    return nn.Sequential(*layers, _Mean(), nn.Linear(widths[-1], classes))


def _convolution(inputs: int, outputs: int, *, stride: int, size: int = 3) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class _Block(nn.Module):
    """Two convolutions of 3 x 3 and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, projection: bool) -> None:
        super().__init__()
        self.around = nn.Sequential(
            _convolution(inputs, outputs, stride=stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            _convolution(outputs, outputs, stride=1),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs and projection:
            self.shortcut = nn.Sequential(
                _convolution(inputs, outputs, stride=stride, size=1), nn.BatchNorm2d(outputs)
            )
        elif inputs != outputs:
            self.shortcut = _Subsample(outputs - inputs, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, outputs, height / stride, width / stride) of (n, inputs, height, width)."""
        return functional.relu(self.around(images) + self.shortcut(images))


class _Subsample(nn.Module):
    """A shortcut without parameters: one pixel of each `stride`, and `more` channels of zeros."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, channels + more, height / stride, width / stride)."""
        return functional.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class _Mean(nn.Module):
    """The mean over all pixels; unlike that of pooling, its gradient is the same each time also on a GPU."""

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, channels) of (n, channels, height, width)."""
        return images.mean(dim=(2, 3))
