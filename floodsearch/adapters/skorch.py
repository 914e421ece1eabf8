"""skorch: a callback with which a `NeuralNet` trains a run of a study.

    def train(run):
        net = NeuralNetClassifier(Module, max_epochs=run.length, callbacks=[FloodCallback(run)], ...)
        net.fit(x, y)

It floods the loss that is trained, reports each epoch, and stops where the run is pruned or pauses. A run
that pauses goes on from its own checkpoint, to the bit: modules, criterion, optimizers, history, callbacks
and the global random states.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator

from floodsearch.adapters.hooks import FloodHooks
from floodsearch.artifacts.checkpoint import strange
from floodsearch.errors import LoopError
from floodsearch.training.loop import LoopRun

try:
    from skorch import NeuralNet
    from skorch.callbacks import Callback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"floodsearch.adapters.skorch needs skorch ({error}); install floodsearch[skorch]"
    ) from error


class FloodCallback(Callback):
    """Trains a run of a study with a skorch `NeuralNet`, by its `fit`.

    What `get_loss` returns is flooded where it is trained, so that the `train_loss` of the net's history is
    the flooded one; the study's curves hold the plain one.

    Args:
        run: as the study hands it to the training function.
        metrics: name of the study to name in the net's history, such as `{"f1": "valid_f1"}`, for those that
            differ: `val_accuracy` is `valid_acc` and `val_loss` is `valid_loss` unless you say otherwise.

    Raises (when `fit` begins or reports):
        LoopError: if the net has another number of epochs or another device than the run, or the study's
            metric is due and is not in the history.
        DivergedError: if a number is NaN or infinite.
    """

    def __init__(self, run: LoopRun, metrics: Mapping[str, str] | None = None) -> None:
        self.run, self.metrics = run, metrics

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Begin to flood, and let a callback of ours stand behind all others."""
        del kwargs
        _check(net, self.run)
        hooks = FloodHooks(self.run, metrics=self.metrics, name_of=_in_history)
        plain = net.get_loss

        @functools.wraps(plain)
        def flooded(*args: Any, **kwargs: Any) -> Any:
            return hooks.on_batch_loss(plain(*args, **kwargs))

        net.get_loss = flooded  # on this net, until its training ends
        net.callbacks_.append(("flooding", _Last(hooks)))  # is told of this beginning too, after all others


class _Last(Callback):
    """Told of all that happens when every other callback has been."""

    def __init__(self, hooks: FloodHooks) -> None:
        self.hooks = hooks

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Load the run's checkpoint if there is one, now that other callbacks have made their schedulers."""
        del kwargs
        parts = {name: one for name, one in vars(net).items() if name[-1] == "_" and _has_state(one)}
        objects = {"model" if name == "module_" else name[:-1]: one for name, one in parts.items()}
        self.hooks.on_train_begin(**objects, history_and_callbacks=_State(net))

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Save the run if that is due: all of the last epoch has ended."""
        del net, kwargs
        self.hooks.on_epoch_begin()

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Report the epoch, and stop where the run ends or pauses, as skorch's own callbacks do."""
        del kwargs
        if self.hooks.on_epoch_end(net.history[-1]):
            raise KeyboardInterrupt

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Save the run where it ended, and flood no more."""
        del kwargs
        if self.hooks.in_epoch and "train_loss" in net.history[-1]:  # a callback has stopped it at its end
            self.hooks.on_epoch_end(net.history[-1])
        self.hooks.on_train_end()
        net.callbacks_ = [(name, one) for name, one in net.callbacks_ if one is not self]
        del net.get_loss


class _State:
    """What changes in a net while it trains, beside its modules and optimizers.

    Of callbacks these are the attributes that end in `_`, as skorch and scikit-learn name them, which are
    plain values or have a state of their own, such as a scheduler. Callbacks that train nothing, such as a
    progress bar, have others, which are made anew.
    """

    def __init__(self, net: NeuralNet) -> None:
        self.net = net

    def state_dict(self) -> dict[str, Any]:
        """Return the history of all epochs that have ended, and the state of callbacks and generators."""
        trained = [row for row in self.net.history.to_list() if row["batches"]]  # not one that begins
        return {
            "history": json.dumps(trained, default=_plain),
            "callbacks": {name: _state_of(one) for name, one in self.net.callbacks_},
            "generators": [one.get_state() for one in self._generators()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set a net that is about to begin its first epoch to what `state_dict` returned."""
        self.net.history[:] = json.loads(state["history"])
        for name, callback in self.net.callbacks_:
            for attribute, value in state["callbacks"][name].items():
                one: Any = getattr(callback, attribute, None)
                if _has_state(one):
                    one.load_state_dict(value)
                else:
                    setattr(callback, attribute, value)
        for generator, its in zip(self._generators(), state["generators"], strict=True):
            generator.set_state(its)

    def _generators(self) -> list[Generator]:
        """Return the generators of their own that the training loader and its sampler were given."""
        options = self.net.get_params_for("iterator_train")
        found = [options.get("generator"), getattr(options.get("sampler"), "generator", None)]
        return [one for one in found if isinstance(one, Generator)]


def _has_state(one: object) -> bool:
    return not isinstance(one, type) and hasattr(one, "state_dict") and hasattr(one, "load_state_dict")


def _state_of(callback: Callback) -> dict[str, Any]:
    """Return what changes in a callback, as far as a checkpoint can hold it."""
    every = {name: one for name, one in vars(callback).items() if name[-1] == "_"}
    states = {name: one.state_dict() if _has_state(one) else _plain(one) for name, one in every.items()}
    return {name: one for name, one in states.items() if strange(one, name) is None}


def _plain(one: Any) -> Any:
    """Return a number of numpy's as Python's; anything else as it is."""
    return one.item() if hasattr(one, "item") and getattr(one, "ndim", None) == 0 else one


def _in_history(name: str) -> str:
    """Return the name in a net's history of a metric of the study."""
    return name.replace("val_", "valid_").replace("_accuracy", "_acc")


def _check(net: NeuralNet, run: LoopRun) -> None:
    """Raise a LoopError if a net does not fit a run."""
    if net.max_epochs != run.length:
        raise LoopError(
            f"the net has max_epochs={net.max_epochs}, the run {run.length}; write max_epochs=run.length"
        )
    device = run.device if net.device is None else torch.device(net.device)
    if (device.type, device.index or 0) != (run.device.type, run.device.index or 0):
        raise LoopError(f"the net trains on {device}, the run on {run.device}; write device=run.device")
