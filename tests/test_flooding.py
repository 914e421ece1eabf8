"""flooding: the value, the gradient, and the loss module around them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from floodsearch.flooding import FloodLoss, check_level, flood

LEVEL = 0.3
BAD_LEVELS = [math.nan, math.inf, -math.inf, -0.01, -1e-300]
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]])
LABELS = torch.tensor([0, 2])

repeatable = settings(derandomize=True, deadline=None, database=None)


def scalar(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def gradient(output: Tensor, at: Tensor) -> float:
    return torch.autograd.grad(output, at)[0].item()


@pytest.mark.parametrize(
    ("loss", "value", "slope"),
    [(0.5, 0.5, 1.0), (0.31, 0.31, 1.0), (0.29, 0.31, -1.0), (0.0, 0.6, -1.0), (-0.2, 0.8, -1.0)],
)
def test_above_the_level_it_is_the_loss_and_below_it_the_mirror_image(loss, value, slope):
    """Above the level value and gradient are the loss's own; below it both are mirrored at the level."""
    at = scalar(loss)
    flooded = flood(at, LEVEL)
    assert flooded.item() == pytest.approx(value, abs=1e-15)
    assert gradient(flooded, at) == slope


def test_below_the_level_the_gradient_is_reversed_and_not_cut_off():
    """It is not max(J, b), nor clamp: below the level their gradient is zero, flooding's climbs."""
    at = scalar(0.1)
    assert gradient(torch.clamp(at, min=LEVEL), at) == 0.0
    assert gradient(flood(at, LEVEL), at) == -1.0


@pytest.mark.parametrize("level", [0.0, -0.0, 0])
@pytest.mark.parametrize("loss", [0.7, 0.0, -3.5, math.nan])
def test_level_zero_is_the_identity(loss, level):
    """Level 0 gives the very same tensor back, also where the loss is negative."""
    at = scalar(loss)
    assert flood(at, level) is at


@repeatable
@given(
    weights=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    level=st.floats(0, 2),
)
def test_autograd_agrees_with_the_formula_by_hand(weights, level):
    """The gradient is that of the plain loss, times -1 where the loss is below the level."""
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    loss = ((w - 0.5) ** 2).mean()
    plain = 2 * (w.detach() - 0.5) / 3
    sign = 1.0 if level == 0 else float(torch.sign(loss.detach() - level))
    flood(loss, level).backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, sign * plain, rtol=1e-12, atol=1e-15)


@repeatable
@given(loss=st.floats(-10, 10), level=st.floats(0, 10))
def test_the_value_is_never_below_the_level(loss, level):
    """With a level above 0 the value is |J - b| + b, which is at least b."""
    value = float(flood(torch.tensor(loss, dtype=torch.float64), level))
    assert value == (abs(loss - level) + level if level else loss)
    assert level == 0 or value >= level


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype):
    """The flooded loss and its gradient have the dtype and device of the loss."""
    at = scalar(0.125, dtype)
    flooded = flood(at, 0.25)
    flooded.backward()
    assert (flooded.dtype, flooded.device, flooded.shape) == (dtype, at.device, at.shape)
    assert flooded.item() == 0.375  # eighths are exact in every one of these
    assert at.grad is not None
    assert (at.grad.dtype, float(at.grad)) == (dtype, -1.0)


@pytest.mark.parametrize("level", BAD_LEVELS)
@pytest.mark.parametrize(
    "use", [check_level, lambda b: flood(scalar(1.0), b), lambda b: FloodLoss(nn.MSELoss(), b)]
)
def test_a_level_that_means_nothing_is_refused(use, level):
    """NaN, infinite and negative levels are refused with the value that was given."""
    with pytest.raises(ValueError, match="finite number of at least 0, but is") as refusal:
        use(level)
    assert str(level) in str(refusal.value)


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 2), (0,)])
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_a_loss_for_each_sample_is_refused(shape, level):
    """Anything but a scalar is refused at every level: flooding each sample is another method."""
    with pytest.raises(ValueError, match="reduction='mean'") as refusal:
        flood(torch.zeros(shape), level)
    assert str(tuple(shape)) in str(refusal.value)


def test_the_module_floods_its_criterion_while_it_trains():
    """While training, FloodLoss is flood() of its criterion, in value and gradient."""
    plain, level = nn.CrossEntropyLoss(), 5.0
    one, other = (LOGITS.clone().requires_grad_() for _ in range(2))
    by_module, by_function = FloodLoss(plain, level)(one, LABELS), flood(plain(other, LABELS), level)
    by_module.backward()
    by_function.backward()
    assert torch.equal(by_module, by_function)
    assert one.grad is not None
    assert other.grad is not None
    assert torch.equal(one.grad, other.grad)


def test_the_module_is_plain_when_it_does_not_train():
    """It is the plain loss in its own eval mode, and wherever gradients are off."""
    plain = nn.CrossEntropyLoss()
    flooded, expected = FloodLoss(plain, 5.0), plain(LOGITS, LABELS)
    with torch.no_grad():
        assert torch.equal(flooded(LOGITS, LABELS), expected)
    with torch.inference_mode():
        assert torch.equal(flooded(LOGITS, LABELS), expected)
    assert torch.equal(flooded.eval()(LOGITS, LABELS), expected)
    assert not torch.equal(flooded.train()(LOGITS.requires_grad_(), LABELS), expected)
    LOGITS.requires_grad_(False)


def test_the_module_replaces_cross_entropy_in_a_training_loop():
    """In place of nn.CrossEntropyLoss it gives the steps of the formula written out."""

    def trained(loss_of) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(20):
            optimizer.zero_grad()
            loss_of(model(LOGITS), LABELS).backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    plain = nn.CrossEntropyLoss()
    by_module = trained(FloodLoss(nn.CrossEntropyLoss(), LEVEL))
    by_hand = trained(lambda outputs, labels: (plain(outputs, labels) - LEVEL).abs() + LEVEL)
    without = trained(plain)
    assert all(map(torch.equal, by_module, by_hand))
    assert not any(map(torch.equal, by_module, without))


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_the_module_refuses_a_criterion_that_does_not_average(reduction):
    """Levels are per mean loss, so a criterion that sums or does not reduce is refused by name."""
    with pytest.raises(ValueError, match="give it reduction='mean'") as refusal:
        FloodLoss(nn.CrossEntropyLoss(reduction=reduction), 0.1)
    assert f"CrossEntropyLoss has reduction={reduction!r}" in str(refusal.value)


def test_the_module_takes_a_criterion_of_the_users_own():
    """A criterion without a `reduction` is taken as it is; if it returns no scalar, the call is refused."""

    class Own(nn.Module):
        def forward(self, outputs: Tensor, *, labels: Tensor) -> Tensor:
            return (outputs - labels) ** 2

    outputs = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="a scalar, but got shape"):
        FloodLoss(Own(), 0.1)(outputs, labels=torch.zeros(2))


def test_the_module_shows_its_level():
    """The level can be read in the module's representation."""
    shown = repr(FloodLoss(nn.CrossEntropyLoss(), 0.29))
    assert "level=0.29" in shown
    assert "CrossEntropyLoss" in shown
