"""In which order a loop of the user's own calls its run: right orders say nothing, wrong ones say which."""

from __future__ import annotations

import pytest

from floodsearch.errors import LoopError
from floodsearch.training.call_order import CallOrder


def follow(calls: str) -> CallOrder:
    """Return the order after some calls: b(egin), e(nter), r(eport), l(eave), p(ause), s(restore)."""
    order, epoch = CallOrder(), 0
    for call in calls:
        if call == "s":
            order.check_restore()
        elif call == "b":
            order.begin()
        elif call == "e":
            order.enter_epoch()
        elif call == "r":
            order.check_report(epoch)
            order.report()
            epoch += 1
        else:
            order.end_epoch(epoch, pauses=call == "p")
    return order


@pytest.mark.parametrize("calls", ["", "s", "ss", "b", "sb", "ber", "sberl", "sberlerp", "berp"])
def test_a_right_order_says_nothing(calls):
    """Restore as often as is wanted, then a report in each epoch, until the run pauses."""
    order = follow(calls)
    assert order.begun == ("b" in calls)
    assert order.paused == calls.endswith("p")
    assert order.error is None


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ("bs", "restore() was called after"),
        ("berps", "restore() was called after"),
        ("r", "outside of the loop"),
        ("br", "outside of the loop"),
        ("berlr", "outside of the loop"),
        ("berpr", "outside of the loop"),
        ("berr", "twice in epoch 1"),
        ("berlerr", "twice in epoch 2"),
        ("bel", "epoch 1 ended without"),
        ("berlep", "epoch 2 ended without"),
    ],
)
def test_a_wrong_order_is_told(calls, message):
    """At the call that is wrong, and by the number of the epoch."""
    follow(calls[:-1])
    with pytest.raises(LoopError) as told:
        follow(calls)
    assert message in str(told.value)


def test_what_is_raised_is_remembered():
    """A function may catch what it is told and go on: its run knows of it all the same."""
    order = CallOrder()
    with pytest.raises(LoopError), order.remembering():
        order.check_report(0)
    assert isinstance(order.error, LoopError)
    with pytest.raises(KeyError), order.remembering():
        raise KeyError
    assert isinstance(order.error, LoopError)
