"""ResNet-44 on images of 32 x 32 x 3: images a second, of the plain way and of ours.

    python -m tests.benchmarks.images [--device cuda:0] [--seconds 20] [--at-once 1,2,4,8,12] [--images 5120]

The *plain way* is a script as people write it: a DataLoader with workers over images in memory, cropped,
mirrored and normalised by torchvision, batches of 128, SGD with momentum, eager, float32, convolutions as
torch computes them by default (in TF32 where the GPU can). *Ours* trains images of the same shape that lie on
the device, with the settings of `[arithmetic]` named in each row, each in a process of its own; then in
several processes on the one device, with the settings that were the fastest alone. Both look at nothing but
the losses of an epoch, at its end. The images are random numbers: what they show costs nothing.

At the end: the forecast of the CIFAR-10 search at these speeds, and two ceilings. *Arithmetic*: three times
the multiplications and additions of the forward pass, at the peak of the device in bf16. *Memory*: each
output of a convolution in bf16 moved `TRAFFIC` times, at the peak of its memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from floodsearch.catalog import known
from floodsearch.cost.floods import Floods
from floodsearch.cost.forecast import plan
from floodsearch.cost.outlook import at_speeds, look_ahead
from floodsearch.cost.throughput import samples_of
from floodsearch.report.text import outlook_text
from floodsearch.study.reader import read
from floodsearch.study.spec import PLAIN, Arithmetic
from floodsearch.tasks.augmentation import crop, normalise
from floodsearch.tasks.image_sets import SOURCES
from floodsearch.tasks.resnet import resnet44
from floodsearch.tasks.task import Data, Recipe, Split, Task
from floodsearch.training.arithmetic import choose_kernels
from floodsearch.training.progress import RunPlan
from floodsearch.training.sequential import Sequential

BATCH, LEVEL, SEED = 128, 0.02, 0
RECIPE = Recipe(batch_size=BATCH, optimizer="sgd", learning_rate=0.1, momentum=0.9)
SOURCE = SOURCES["cifar10"]
STUDY = Path(__file__).parents[2] / "studies" / "cifar10_resnet44.toml"
SETTINGS = {
    "float32": PLAIN,
    "tf32": Arithmetic(precision="tf32"),
    "bf16": Arithmetic(precision="bf16"),
    "bf16, channels_last": Arithmetic(precision="bf16", channels_last=True),
    "bf16, channels_last, compile": Arithmetic(precision="bf16", channels_last=True, compile="default"),
    "bf16, channels_last, CUDA graphs": Arithmetic(
        precision="bf16", channels_last=True, compile="reduce-overhead"
    ),
    "the same, not deterministic": Arithmetic(
        precision="bf16", channels_last=True, compile="reduce-overhead", deterministic=False
    ),
}
TRAFFIC = 20
"""Times that an activation is read or written in a training step where nothing is fused: forward, the
convolution reads and writes, BatchNorm reads twice and writes, ReLU or the sum reads and writes; backward
about twice as often."""
PEAKS = {"H100": (989.0, 3.35), "H200": (989.0, 4.8)}  # TFLOP/s in bf16 without sparsity, TB/s; data sheets


class InMemory(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets hold them, transformed one by one."""

    def __init__(self, count: int) -> None:
        from torchvision.transforms import v2

        generator = torch.Generator().manual_seed(SEED)
        self.images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(0, 10, (count,), generator=generator)
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(SOURCE.mean, SOURCE.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def plain(device: torch.device, seconds: float, images: int, workers: int) -> float:
    """Return the images a second of the plain way."""
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
    loader = DataLoader(
        InMemory(images),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    model = resnet44(3, 10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def epoch() -> None:
        model.train()
        losses = []
        for images, labels in loader:
            inputs, targets = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            ((loss - LEVEL).abs() + LEVEL).backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).tolist()

    epoch()
    return images * _epochs_a_second(epoch, seconds)


def _epochs_a_second(epoch: Callable[[], None], seconds: float) -> float:
    """Return how often an epoch is trained, which ends when the device has ended."""
    epochs, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        epoch()
        epochs += 1
    return epochs / taken


def task(device: torch.device, count: int) -> Task:
    """Return the training of images that lie on a device."""
    data = InMemory(count)
    images = data.images.to(device)
    mean, std = (torch.tensor(one, device=device)[:, None, None] for one in (SOURCE.mean, SOURCE.std))

    def prepare(rows: Tensor, generator: torch.Generator | None) -> Tensor:
        chosen = images[rows]
        if generator is not None:
            chosen = crop(chosen, generator, mirror=True)
        return normalise(chosen, mean, std)

    rows = torch.arange(count)
    few = Split(rows[:BATCH], data.labels[:BATCH])
    return Task(
        data=lambda _: Data(Split(rows, data.labels), few, few),
        model=lambda: resnet44(3, 10),
        recipe=RECIPE,
        prepare=prepare,
    )


def ours(
    device: torch.device, seconds: float, images: int, arithmetic: Arithmetic, barrier: Any = None
) -> float:
    """Return the images a second of ours, from when all processes are warm on."""
    choose_kernels(arithmetic)
    engine = Sequential(
        task(device, images), RunPlan(epochs=10**6, validate_every=10**6, arithmetic=arithmetic), device
    )
    runs = [engine.new_run(SEED, LEVEL)]

    def epoch() -> None:
        for outcome in engine.advance(runs):
            if isinstance(outcome, BaseException):
                raise outcome

    for _ in range(2):  # compiles, captures, allocates
        epoch()
    if barrier is not None:
        barrier.wait()
    return images * _epochs_a_second(epoch, seconds)


def _process(
    device: str, seconds: float, images: int, arithmetic: Arithmetic, barrier: Any, speeds: Any
) -> None:
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // barrier.parties))
    try:
        speeds.put(ours(torch.device(device), seconds, images, arithmetic, barrier))
    except BaseException as error:
        speeds.put(f"{type(error).__name__}: {error}".partition("\n")[0])
        barrier.abort()


def together(
    device: torch.device, seconds: float, images: int, arithmetic: Arithmetic, processes: int
) -> float:
    """Return the images a second of several processes in all.

    Raises:
        RuntimeError: if one of them fails.
    """
    context = multiprocessing.get_context("spawn")
    barrier, speeds = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=_process, args=(str(device), seconds, images, arithmetic, barrier, speeds))
        for _ in range(processes)
    ]
    for process in started:
        process.start()
    found = [speeds.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    if failed := [one for one in found if isinstance(one, str)]:
        raise RuntimeError(failed[0])
    return sum(found)


def counted() -> tuple[float, float]:
    """Return the multiplications of a forward pass, and the outputs of convolutions, of one image."""
    found: list[tuple[float, float]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        weights = layer.weight[0].numel()
        found.append((weights * output.numel(), output.numel()))

    model = resnet44(3, 10).eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    return sum(one for one, _ in found), sum(one for _, one in found)


def ceilings(name: str) -> Iterator[str]:
    """Yield what bounds the images a second on a device of that name."""
    multiplications, outputs = counted()
    yield f"an image: {multiplications / 1e6:.1f} M multiplications forward, {outputs:,.0f} activations"
    for kind, (teraflops, terabytes) in PEAKS.items():
        if kind in name:
            arithmetic = teraflops * 1e12 / (3 * 2 * multiplications)
            memory = terabytes * 1e12 / (TRAFFIC * 2 * outputs)
            yield f"{kind}: arithmetic {arithmetic:,.0f} images a second, memory {memory:,.0f}"


def row(name: str, speed: float, of: float) -> None:
    """Print a row."""
    print(f"| {name} | {speed:,.0f} | {speed / of:.2f} |", flush=True)


def main() -> None:
    """Measure and print a row for each side, the ceilings and the forecast."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--loaders", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--at-once", default="1,2,4,8,12")
    parser.add_argument("--images", type=int, default=40 * BATCH, help="of an epoch")
    arguments = parser.parse_args()
    device, seconds, images = torch.device(arguments.device), arguments.seconds, arguments.images
    numbers: Sequence[int] = [int(number) for number in arguments.at_once.split(",")]
    print("| | images a second | to the plain way |\n|---|---|---|")
    base = plain(device, seconds, images, arguments.loaders)
    row(f"the plain way, {arguments.loaders} DataLoader workers", base, base)
    alone = {}
    for name, arithmetic in SETTINGS.items():
        try:
            alone[name] = together(device, seconds, images, arithmetic, 1)
        except RuntimeError as error:
            print(f"| ours, {name} | failed: {error} | |", flush=True)
        else:
            row(f"ours, {name}", alone[name], base)
    fastest = max(alone, key=lambda name: alone[name])
    speeds = {1: alone[fastest]}
    for number in numbers:
        if number > 1:
            speeds[number] = together(device, seconds, images, SETTINGS[fastest], number)
            row(f"ours, {number} processes, {fastest}", speeds[number], base)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print("\n".join(ceilings(where)))
    spec = read(STUDY, known())
    stages = plan(spec, Floods(highest=spec.levels.highest, late=0))
    assert stages is not None
    print(outlook_text(spec, at_speeds(look_ahead(spec), spec, stages, samples_of(spec), speeds)))
    print(f"{where}, torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
