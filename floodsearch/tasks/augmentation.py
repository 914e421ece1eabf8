"""Images by batch, on the device where they lie: cropped at random, mirrored, normalised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PADDING = 4  # pixels on each side


def crop(images: Tensor, generator: torch.Generator, *, mirror: bool) -> Tensor:
    """Return each image shifted by up to four pixels either way, and half of them mirrored.

    As torchvision's `RandomCrop(size, padding=4)` and `RandomHorizontalFlip()`: what comes in from outside is
    black, and every shift has the same chance.

    Args:
        images: (n, channels, height, width), on the device of the generator.
        generator: draws the shifts and the mirroring of all images of the batch at once.
        mirror: whether to mirror; digits and letters become others by it.
    """
    n, _, height, width = images.shape
    down, right = torch.randint(0, 2 * PADDING + 1, (2, n), generator=generator, device=images.device)
    padded = functional.pad(images, (PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, channels, 9, 9, height, width), a view
    crops = windows.movedim(1, 3)[torch.arange(n, device=images.device), down, right]
    if not mirror:
        return crops
    mirrored = torch.randint(0, 2, (n, 1, 1, 1), generator=generator, device=images.device).bool()
    return torch.where(mirrored, crops.flip(3), crops)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return floats of about mean 0 and deviation 1, to the bit those of torchvision.

    As its `ToTensor()` and `Normalize(mean, std)`.

    Args:
        images: (n, channels, height, width), 0 to 255.
        mean: (channels, 1, 1), of the images divided by 255.
        std: (channels, 1, 1), likewise.
    """
    return images.float().div_(255).sub_(mean).div_(std)
