"""training: how numbers are computed changes a run by rounding, and nothing else about it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from floodsearch.records import EpochRecord
from floodsearch.study.spec import Arithmetic
from floodsearch.tasks.streams import stream
from floodsearch.tasks.task import Data, Recipe, Split, Task
from floodsearch.training.arithmetic import choose_kernels
from floodsearch.training.cohort import Cohort
from floodsearch.training.engine import Engine
from floodsearch.training.progress import RunPlan
from floodsearch.training.sequential import Sequential
from floodsearch.training.stack import Stack
from tests.device import DEVICE

SAMPLES, EPOCHS, LEVEL = 40, 3, 0.5
ROUNDING = {"float32": 1e-4, "tf32": 1e-4, "bf16": 5e-2}
"""Share by which a loss may be off after three epochs: a few hundred units of the last place."""
ALL = [
    Arithmetic(precision="bf16"),
    Arithmetic(channels_last=True),
    Arithmetic(precision="bf16", channels_last=True, compile="default"),
]
NAMES = ["bf16", "channels_last", "all"]


def draw(seed: int) -> Data:
    parts = []
    for name in ("train", "validation", "test"):
        labels = torch.arange(SAMPLES) % 3
        noise = torch.randn(SAMPLES, 3, 8, 8, generator=stream(seed, "test_arithmetic", name))
        parts.append(Split(noise + labels[:, None, None, None], labels))
    return Data(*parts)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 3))


def task() -> Task:
    return Task(data=draw, model=network, recipe=Recipe(batch_size=16, optimizer="sgd", learning_rate=0.05))


def trained(engine: type[Sequential | Stack], arithmetic: Arithmetic) -> list[EpochRecord]:
    plan = RunPlan(epochs=EPOCHS, arithmetic=arithmetic)
    maker: Engine = engine(task(), plan, DEVICE)
    run = maker.new_run(0, LEVEL)
    records = []
    for _ in range(EPOCHS):
        [outcome] = maker.advance([run])
        assert isinstance(outcome, EpochRecord), outcome
        records.append(outcome)
    return records + run.tested()


def near(one: list[EpochRecord], other: list[EpochRecord], share: float) -> bool:
    """Return whether losses are equal but for rounding."""
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=share)
        for left, right in zip(one, other, strict=True)
        for a, b in ((left.train_loss, right.train_loss), (left.val_loss, right.val_loss))
        if a is not None and b is not None
    )


@pytest.mark.parametrize("arithmetic", ALL, ids=NAMES)
def test_a_run_differs_from_a_plain_one_by_rounding_only(arithmetic: Arithmetic) -> None:
    plain = trained(Sequential, Arithmetic())
    found = trained(Sequential, arithmetic)
    assert near(found, plain, ROUNDING[arithmetic.precision])
    assert trained(Sequential, arithmetic) == found, "the same again, to the bit"


@pytest.mark.parametrize("arithmetic", ALL, ids=NAMES)
def test_a_forked_run_is_the_run_alone_to_the_bit(arithmetic: Arithmetic) -> None:
    """Also where a step is compiled, or computed in bf16: a fork computes as its trunk did."""
    plan, levels = RunPlan(epochs=EPOCHS, arithmetic=arithmetic), {0: 0.0, 1: 0.45, 2: 0.7, 3: 5.0}
    cohort = Cohort(task(), plan, levels=levels, seeds=dict.fromkeys(levels, (0,)), device=DEVICE)
    steps = [cohort.advance() for _ in range(EPOCHS)]
    for member, level in levels.items():
        alone = Sequential(task(), plan, DEVICE).new_run(0, level)
        assert [record for step in steps for record in step.records[member]] == list(alone)


def test_a_stack_computes_in_the_precision_of_the_study() -> None:
    """A stack in bf16 differs from one in float32, and from the loop in bf16 by rounding only."""
    arithmetic = Arithmetic(precision="bf16")
    stacked = trained(Stack, arithmetic)
    assert stacked != trained(Stack, Arithmetic())
    assert near(stacked, trained(Sequential, arithmetic), ROUNDING["bf16"])


def test_weights_and_losses_stay_in_float32_under_bf16() -> None:
    """What is learned adds up in float32, and a level is compared with a loss of float32."""
    losses: list[Tensor] = []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        losses.append(nn.functional.cross_entropy(outputs, labels))
        return losses[-1]

    one = Task(data=draw, model=network, recipe=Recipe(batch_size=16), loss=loss)
    run = Sequential(one, RunPlan(epochs=1, arithmetic=Arithmetic(precision="bf16")), DEVICE).new_run(
        0, LEVEL
    )
    run.advance()
    assert {value.dtype for value in losses} == {torch.float32}
    assert {value.dtype for value in run.model.parameters()} == {torch.float32}


def test_channels_last_lays_out_weights_and_stays_so() -> None:
    """Weights keep their layout when a run takes up the state of another."""
    plan = RunPlan(epochs=2, arithmetic=Arithmetic(channels_last=True))
    run = Sequential(task(), plan, DEVICE).new_run(0, 0.0)
    run.advance()
    other = run.sibling(LEVEL)
    other.take_up(run.state())
    for one in (run, other):
        assert one.model[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index,union-attr]


@pytest.fixture
def kernels() -> Iterator[None]:
    """Put torch's choice of kernels back afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32
    yield
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = before


@pytest.mark.usefixtures("kernels")
def test_float32_is_float32_and_tf32_is_asked_for() -> None:
    """By default no factor is rounded to ten bits, and convolutions add up in the same order each time."""
    choose_kernels(Arithmetic())
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    choose_kernels(Arithmetic(precision="tf32", deterministic=False))
    assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark
