"""Nested containers: walked in order, changed leaf by leaf, copied with and without old memory."""

from __future__ import annotations

from collections import Counter, OrderedDict

import torch

from floodsearch.artifacts.trees import leaves, map_leaves
from floodsearch.training.run import copy_state

STATE = {
    "model": OrderedDict(weight=torch.arange(3.0), steps=torch.tensor(2)),
    "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}, {}],
    ("a", 1): Counter("aab"),
}


def test_leaves_come_in_their_order():
    """Containers are looked into whatever their kind; an empty one has none."""
    weight, steps, *numbers = leaves(STATE)
    assert (weight.tolist(), steps.item()) == ([0, 1, 2], 2)
    assert numbers == [0.1, 0.9, 0.99, 2, 1]


def test_containers_keep_their_kinds():
    """What is at the same place in another tree is handed in with each leaf, None where that has nothing."""
    changed = map_leaves(lambda one, other: (one, other), STATE, {"groups": [{"lr": 5, "betas": 7}]})
    assert isinstance(changed["model"], OrderedDict)
    assert isinstance(changed["a", 1], Counter)
    assert changed["groups"] == [{"lr": (0.1, None), "betas": ((0.9, None), (0.99, None))}, {}]
    assert map_leaves(lambda one, other: other, {"x": [1, 2]}, {"x": [3, 4]}) == {"x": [3, 4]}


def equal(one: object, other: object) -> bool:
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(
        torch.equal(*pair) if isinstance(pair[0], torch.Tensor) else pair[0] == pair[1] for pair in pairs
    )


def test_a_copy_shares_no_memory_with_the_state():
    """Training goes on in place, and the copy stays."""
    state = {"model": {"weight": torch.zeros(3)}}
    copied = copy_state(state, None)
    state["model"]["weight"] += 1
    assert copied["model"]["weight"].tolist() == [0, 0, 0]


def test_a_copy_takes_the_memory_of_an_earlier_one_where_that_fits():
    """Tensors of the same shape and kind are written over, others are new; the numbers are the state's."""
    before = {"model": OrderedDict(weight=torch.zeros(3), steps=torch.zeros(2))}
    weight = before["model"]["weight"]
    copied = copy_state(STATE, before)
    assert copied["model"]["weight"] is weight
    assert copied["model"]["steps"] is not before["model"]["steps"]
    assert equal(copied, STATE)
