"""flooding: the value, the gradient, and the loss module around them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from floodsearch.flooding.loss import FloodLoss, check_level, flood

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
def test_a_batch_loss_must_be_one_number(shape, level):
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
@pytest.mark.parametrize("level", [0.2, 5.0])
def test_a_level_means_the_same_however_the_criterion_reduces(reduction, level):
    """The sign is that of the mean loss of a sample; a criterion that sums gives a sum again."""
    outputs = [LOGITS.clone().requires_grad_() for _ in range(2)]
    mean = FloodLoss(nn.CrossEntropyLoss(), level)(outputs[0], LABELS)
    other = FloodLoss(nn.CrossEntropyLoss(reduction=reduction), level)(outputs[1], LABELS)
    scale = len(LABELS) if reduction == "sum" else 1
    assert other.item() == pytest.approx(scale * mean.item())
    mean.backward()
    other.backward()
    torch.testing.assert_close(outputs[1].grad, scale * outputs[0].grad)


def test_a_sum_without_a_target_is_refused():
    """Without a batch size a sum has no mean: the call says so, and takes a target by its name."""

    class Own(nn.Module):
        reduction = "sum"

        def forward(self, outputs: Tensor, *, target: Tensor | None = None) -> Tensor:
            return (outputs if target is None else outputs - target).square().sum()

    flooded, outputs = FloodLoss(Own(), 0.1), torch.ones(4, requires_grad=True)
    with pytest.raises(ValueError, match="its criterion sums: the batch size is taken from the target"):
        flooded(outputs)
    assert flooded(outputs, target=torch.zeros(4)).item() == pytest.approx(4.0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_flooding_each_sample_needs_the_loss_of_each(reduction):
    with pytest.raises(ValueError, match="give it reduction='none'"):
        FloodLoss(nn.CrossEntropyLoss(reduction=reduction), 0.1, per="sample")


@pytest.mark.parametrize("level", [0.0, 0.3, torch.tensor(0.3), torch.tensor([0.0, 0.1, 2.0])], ids=str)
def test_iflood_is_the_mean_of_the_flooded_losses(level):
    """iFlood (ICLR 2022): each sample's loss is flooded at its level, then averaged; level 0 floods none."""
    losses = torch.tensor([-0.5, 0.2, 0.9], requires_grad=True)
    levels = torch.as_tensor(level).expand(3).tolist()
    each = [x if b == 0 else abs(x - b) + b for x, b in zip(losses.tolist(), levels, strict=True)]
    flooded = flood(losses, level, per="sample")
    assert flooded.item() == pytest.approx(sum(each) / 3)
    flooded.backward()
    signs = [1.0 if b == 0 or x > b else -1.0 for x, b in zip(losses.tolist(), levels, strict=True)]
    assert losses.grad.tolist() == pytest.approx([sign / 3 for sign in signs])


def test_softad_is_smooth_where_flooding_turns():
    """SoftAD (NeurIPS 2024): b + mean of sqrt((l - b)^2 + 1) - 1, whose gradient vanishes at the level."""
    losses = torch.tensor([0.3, 0.3, 1.3], dtype=torch.float64, requires_grad=True)
    flooded = flood(losses, 0.3, per="sample", form="soft")
    assert flooded.item() == pytest.approx(0.3 + (math.sqrt(2) - 1) / 3)
    flooded.backward()
    assert losses.grad.tolist() == pytest.approx([0.0, 0.0, 1 / math.sqrt(2) / 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "soft"}, "SoftAD, which decides per sample"),
        ({"per": "token"}, "per must be 'batch' or 'sample'"),
        ({"per": "sample"}, "takes the loss of each sample"),
    ],
    ids=str,
)
def test_a_form_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        flood(torch.tensor(0.5), 0.1, **options)


def test_a_level_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"level of shape \(2,\) does not fit a loss of \(3,\)"):
        flood(torch.zeros(3), torch.zeros(2), per="sample")


def test_a_level_as_a_tensor_moves_with_the_module():
    """It is no weight: not in the state dict, but converted and moved like one."""
    flooded = FloodLoss(nn.CrossEntropyLoss(), torch.tensor(0.2))
    assert not flooded.state_dict()
    assert flooded.double().level.dtype == torch.float64
    plain = FloodLoss(nn.CrossEntropyLoss(), 0.2)
    assert torch.equal(flooded.float()(LOGITS, LABELS), plain(LOGITS, LABELS))


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
