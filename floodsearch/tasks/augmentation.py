"""Images by batch, on the device where they lie: cropped at random, mirrored, normalised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PADDING = 4  # pixels on each side


def cropped(images: Tensor, generator: torch.Generator, *, mirror: bool) -> Tensor:
    """Return each image shifted by up to four pixels either way, and half of them mirrored.

    As torchvision's `RandomCrop(size, padding=4)` and `RandomHorizontalFlip()`: what comes in from outside is
    black, and every shift has the same chance.

    Args:
        images: (n, channels, height, width), on the device of the generator.
        generator: draws the shifts and the mirroring of all images of the batch at once.
        mirror: whether to mirror; digits and letters become others by it.
    """
    n, channels, height, width = images.shape
    device = images.device
    down, right = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=generator, device=device)
    rows = down + torch.arange(height, device=device)  # (n, height)
    columns = torch.arange(width, device=device).expand(n, width)
    if mirror:
        mirrored = torch.randint(0, 2, (n, 1), generator=generator, device=device).bool()
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = right + columns  # (n, width)
    padded = functional.pad(images, (PADDING,) * 4)
    image = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return floats of about mean 0 and deviation 1, to the bit those of torchvision.

    As its `ToTensor()` and `Normalize(mean, std)`.

    Args:
        images: (n, channels, height, width), 0 to 255.
        mean: (channels, 1, 1), of the images divided by 255.
        std: (channels, 1, 1), likewise.
    """
    return images.float().div_(255).sub_(mean).div_(std)
