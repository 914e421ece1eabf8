"""What a GPU reaches where each training step is one CUDA graph, and several nets train on streams.

    python -m tests.benchmarks.graphs [--ways autocast,weights,compiled] [--at-once 1,2,4,8] [--seconds 2]

A ceiling for ResNet-44 on images of 32 x 32 x 3, not a way that studies are trained today. A step gathers,
crops, mirrors and normalises 128 images on the device, and trains by SGD with momentum below a flood level;
it is captured once and then replayed, so that the host launches one graph instead of some 700 kernels. In
bf16, `channels_last`, deterministic convolutions. *autocast* casts the weights in each step; *weights* keeps
them in bf16 beside the float32 that learn; *compiled* lets Inductor fuse what surrounds the convolutions.

At the end of each way: whether a net that trains alone comes to the very weights that it has beside others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from floodsearch.flooding.loss import flood
from floodsearch.tasks.augmentation import PADDING, normalise
from floodsearch.tasks.image_sets import SOURCES
from floodsearch.tasks.resnet import resnet44

BATCH, IMAGES, LEVEL, RATE, MOMENTUM, STEPS = 128, 51_200, 0.02, 0.1, 0.9, 60
WAYS = ("autocast", "weights", "compiled")


class Images:
    """Random images on a device."""

    def __init__(self, device: torch.device, count: int) -> None:
        draw = torch.Generator(device=device).manual_seed(0)
        self.pixels = torch.randint(
            0, 256, (count, 3, 32, 32), generator=draw, device=device, dtype=torch.uint8
        )
        self.labels = torch.randint(0, 10, (count,), generator=draw, device=device)
        source = SOURCES["cifar10"]
        self.mean, self.std = (
            torch.tensor(one, device=device)[:, None, None] for one in (source.mean, source.std)
        )


class Net:
    """A net whose step reads nothing from the host: where it is in its epoch is a number on the device."""

    def __init__(self, way: str, images: Images, seed: int) -> None:
        device, count = images.pixels.device, len(images.pixels)
        self.images, self.way = images, way
        torch.manual_seed(seed)
        self.model = resnet44(3, 10).to(device).to(memory_format=torch.channels_last)
        low: list[Tensor] = []  # weights that are computed with in bf16
        if way != "autocast":
            for layer in self.model.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    low += layer.parameters()
        is_low = set(map(id, low))
        others = [one for one in self.model.parameters() if id(one) not in is_low]
        self.masters = [one.detach().clone() for one in low]
        for one in low:
            one.data = one.data.bfloat16()
        self.low, self.parameters = low, [*low, *others]
        self.learning = [*self.masters, *others]
        self.momenta = [torch.zeros_like(one) for one in self.learning]
        self.gradients = [torch.zeros_like(one) for one in self.masters]
        self.forward = torch.compile(self.model, dynamic=False) if way == "compiled" else self.model
        draw = torch.Generator(device=device).manual_seed(seed)
        self.order = torch.randperm(count, generator=draw, device=device)
        self.shifts = torch.randint(0, 2 * PADDING + 1, (2, count), generator=draw, device=device)
        self.mirrored = torch.randint(0, 2, (count,), generator=draw, device=device).bool()
        self.at = torch.zeros((), dtype=torch.long, device=device)
        self.within = torch.arange(BATCH, device=device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the images and labels of the step that the net is at."""
        places = (self.at * BATCH + self.within) % len(self.order)
        rows, (down, right) = self.order[places], self.shifts[:, places]
        padded = functional.pad(self.images.pixels[rows], (PADDING,) * 4)
        windows = padded.unfold(2, 32, 1).unfold(3, 32, 1).movedim(1, 3)
        crops = windows[self.within, down, right]
        crops = torch.where(self.mirrored[places].view(BATCH, 1, 1, 1), crops.flip(3), crops)
        inputs = normalise(crops, self.images.mean, self.images.std)
        return inputs.contiguous(memory_format=torch.channels_last), self.images.labels[rows]

    def step(self) -> None:
        """Take a step."""
        inputs, labels = self.batch()
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.way == "autocast"):
            outputs = self.forward(inputs if self.way == "autocast" else inputs.bfloat16())
        loss = functional.cross_entropy(outputs.float(), labels)
        found = torch.autograd.grad(flood(loss, LEVEL), self.parameters)
        with torch.no_grad():
            if self.low:
                torch._foreach_copy_(self.gradients, found[: len(self.low)])
            torch._foreach_mul_(self.momenta, MOMENTUM)
            torch._foreach_add_(self.momenta, [*self.gradients, *found[len(self.low) :]])
            torch._foreach_add_(self.learning, self.momenta, alpha=-RATE)
            if self.low:
                torch._foreach_copy_(self.low, self.masters)
        self.at += 1

    def capture(self) -> None:
        """Make a graph of the step, on a stream of the net's own."""
        self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(4):  # compiles, finds kernels, allocates
                self.step()
        self.stream.synchronize()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.step()


def replay(nets: Sequence[Net], steps: int) -> None:
    """Take some steps of all nets, and wait for them."""
    for _ in range(steps):
        for net in nets:
            with torch.cuda.stream(net.stream):
                net.graph.replay()
    torch.cuda.synchronize()


def captured(way: str, images: Images, seeds: Sequence[int]) -> list[Net]:
    """Return nets that are ready to be replayed."""
    nets = [Net(way, images, seed) for seed in seeds]
    for net in nets:
        net.capture()
    return nets


def main() -> None:
    """Measure and print a row for each way and number of nets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--at-once", default="1,2,4,8")
    parser.add_argument("--seconds", type=float, default=2)
    arguments = parser.parse_args()
    numbers = [int(number) for number in arguments.at_once.split(",")]
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = True
    images = Images(torch.device("cuda"), IMAGES)
    print("| way | nets at once | images a second |\n|---|---|---|")
    for way in arguments.ways.split(","):
        for number in numbers:
            nets = captured(way, images, range(number))
            replay(nets, 20)
            steps, begun = 0, time.perf_counter()
            while (seconds := time.perf_counter() - begun) < arguments.seconds:
                replay(nets, 100)
                steps += 100
            print(f"| {way} | {number} | {steps * BATCH * number / seconds:,.0f} |", flush=True)
        together, [alone] = captured(way, images, range(max(numbers))), captured(way, images, [0])
        replay(together, STEPS)
        replay([alone], STEPS)
        same = all(map(torch.equal, alone.learning, together[0].learning))
        print(f"| {way} | a net beside others is the net alone | {'to the bit' if same else 'no'} |")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
