"""What a user's code holds at one time: its variables, attributes and globals, each as a digest.

Two runs that are the same hold the same. What differs where they part is what a message has to name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import itertools
import random
import sys
import textwrap
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from floodsearch.tryout.observed import Part
from floodsearch.tryout.source import carried, deciding
from floodsearch.usercode.reference import FOREIGN
from floodsearch.worker.loops import Loops

DEPTH = 5
"""How many attributes and elements deep an object is looked into."""
ELEMENTS = 64
"""So many elements of a container that is not of plain values are looked into."""
MOST_NUMBERS = 2**22
"""Of an array that is larger, so many numbers are compared, evenly spread over it."""
LONGEST = 40
"""Characters of a value in a message."""
INSIDE = ("generator", "sampler", "batch_sampler", "dataset", "callbacks", "callback_handler", "scheduler")
"""Attributes that are looked into of objects whose class is not the user's, such as loaders and trainers."""
CLOCK = 1e5
"""A number that is within so many seconds of a clock is a time."""
PLAIN = (bool, int, float, complex, str, bytes, type(None))
CONTAINERS = (list, tuple, set, frozenset, dict)
CODE = (ModuleType, FunctionType, MethodType, BuiltinFunctionType, type, FrameType)


def snapshot(frame: FrameType | None, ignored: object, modules: Iterable[str] = ()) -> dict[str, Part]:
    """Return what the user's code holds: in the functions that run now, and in its modules.

    Args:
        frame: of the function that runs, or is called by one of the user's.
        ignored: is the code's, but not looked into: its run.
        modules: of the code, beside those of its functions that run.
    """
    frames = list(_own_frames(frame))
    walk = _Walk(seen={id(ignored)})
    names = [str(one.f_globals.get("__name__")) for one in frames]
    # Those of a script that runs as a whole for each run are its own.
    own = [one.f_globals for one in frames if one.f_locals is one.f_globals]
    for module in _own_modules([*names, *modules]):
        if not any(vars(module) is one for one in own):
            walk.shared = f" of {module.__name__}"
            walk.take_all(vars(module), deciding(_source(module)), None)
    walk.shared = ""
    for one in frames:
        text = _source(one.f_code)
        walk.take_all(one.f_locals, deciding(text), carried(text))
    return walk.outermost()


def _own_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield those of a frame and its callers that are of the user's own code, up to where that was called."""
    while frame is not None and frame.f_code is not Loops.call.__code__:
        if _is_own(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _own_modules(names: Iterable[str]) -> list[ModuleType]:
    """Return the user's own modules: those of some names, and what they import of the user's."""
    todo = [sys.modules[name] for name in names if name in sys.modules]
    found: dict[str, ModuleType] = {}
    while todo:
        module = todo.pop()
        if module.__name__ in found or not _is_own(getattr(module, "__file__", None) or ""):
            continue
        found[module.__name__] = module
        for value in list(vars(module).values()):
            name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(name, str) and name in sys.modules:
                todo.append(sys.modules[name])
    return list(found.values())


@functools.cache
def _is_own(file: str) -> bool:
    """Return whether a file is of the user's own code."""
    return bool(file) and not file.startswith(("<frozen", *FOREIGN)) and "site-packages" not in file


@functools.cache
def _source(of: CodeType | ModuleType | type) -> str:
    try:
        return textwrap.dedent(inspect.getsource(of))
    except (OSError, TypeError):
        return ""


@dataclass
class _Walk:
    """A walk through the objects of a user's code; each is found once, by its first name.

    Attributes:
        seen: the objects that were met, by identity.
        found: the parts, by name.
        within: those whose state another one's has.
        shared: what is put behind the names of what belongs to a module; "" for what belongs to a call.
    """

    seen: set[int]
    found: dict[str, Part] = field(default_factory=dict)
    shared: str = ""
    within: set[int] = field(default_factory=set)
    _of: dict[int, str] = field(default_factory=dict)  # from identity to name
    _lasts: bool = True
    _alive: list[object] = field(default_factory=list)  # so that no other object gets the identity of one

    def take_all(
        self, variables: Mapping[str, Any], matters: frozenset[str], lasts: frozenset[str] | None
    ) -> None:
        """Look at variables: by which of them the code decides, and which last from epoch to epoch."""
        for name, value in variables.items():
            if not name.startswith("__"):
                self._lasts = lasts is None or name in lasts
                self.take(name, value, matters)

    def take(self, name: str, value: Any, matters: frozenset[str], depth: int = DEPTH) -> None:
        """Look at a value that the code calls by a name, and into it."""
        if isinstance(value, CODE):
            return
        if _is_plain(value):
            if not _is_time(value):
                decides = self._lasts and name.rpartition(".")[2].partition("[")[0] in matters
                self._add(name, Part("plain", repr(value), _short(value), decides=decides, restorable=True))
            return
        if id(value) in self.seen:
            return
        self.seen.add(id(value))
        self._alive.append(value)
        part = _part(value)
        if part is not None:
            self._add(name, part)
            self._of[id(value)] = name + self.shared
            # The state of a scheduler has that of others that it is made of.
            self.within.update(map(id, getattr(value, "_schedulers", ())))
        if depth > 0:
            for inner, one, inside in _inner(name, value, part is not None):
                self.take(inner, one, matters if inside is None else inside, depth - 1)

    def outermost(self) -> dict[str, Part]:
        """Return the parts but for those whose state another one's has."""
        inner = {self._of.get(one) for one in self.within}
        return {name: part for name, part in self.found.items() if name not in inner}

    def _add(self, name: str, part: Part) -> None:
        part = part._replace(shared=bool(self.shared), lasts=self._lasts)
        self.found.setdefault(name + self.shared, part)


def _is_plain(value: Any, depth: int = 3) -> bool:
    """Return whether a value is a number, a text, or a short container of these."""
    if isinstance(value, PLAIN):
        return True
    if depth == 0 or not isinstance(value, CONTAINERS) or len(value) > 10_000:
        return False
    if isinstance(value, dict):
        return all(_is_plain(one, depth - 1) for pair in value.items() for one in pair)
    return all(_is_plain(one, depth - 1) for one in value)


def _is_time(value: Any) -> bool:
    clocks = time.time(), time.monotonic(), time.perf_counter()
    return isinstance(value, float) and any(0 <= clock - value < CLOCK and value > 60 for clock in clocks)


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    if isinstance(value, list | tuple | set | dict) and len(text) > LONGEST:
        return f"a {type(value).__name__} of {len(value)}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _part(value: Any) -> Part | None:
    """Return an object that is compared as a whole; None for one that is only looked into."""
    kind = type(value).__name__
    with contextlib.suppress(Exception):  # it may be of any library, and is asked when it did not expect it
        if isinstance(value, Tensor | np.ndarray):
            return Part("array", _digest(value), kind)
        if (state := _state_of_generator(value)) is not None:
            return Part("generator", _digest(state), kind, restorable=isinstance(value, torch.Generator))
        if hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            return Part("state", _digest(value.state_dict()), kind, restorable=True)
        if isinstance(value, CONTAINERS):
            return Part("container", str(len(value)), f"a {kind} of {len(value)}")
    return None


def _state_of_generator(value: Any) -> object:
    """Return the state of a generator of random numbers; None for anything else, and for torch's own."""
    if isinstance(value, torch.Generator):
        return None if value is torch.default_generator else value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    return value.getstate() if isinstance(value, random.Random) else None


def _inner(name: str, value: Any, whole: bool) -> Iterator[tuple[str, Any, frozenset[str] | None]]:
    """Yield what is in an object: its name, and the names by which its class decides; None if not the user's.

    Args:
        name: of the object.
        value: the object.
        whole: whether it is compared as a whole already.
    """
    if isinstance(value, CONTAINERS):
        keyed = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in itertools.islice(keyed, ELEMENTS):
            yield f"{name}[{key!r}]" if isinstance(key, str | int) else name, one, None
    elif isinstance(value, Namespace | SimpleNamespace):
        for key, one in vars(value).items():
            yield f"{name}.{key}", one, None
    elif _is_own(_file_of(kind := type(value))):
        matters = deciding(_source(kind))  # type: ignore[arg-type]
        for key, one in list(getattr(value, "__dict__", {}).items()):
            # What a module of torch registers is in its state.
            registered = whole and (key == "training" or isinstance(one, Tensor | nn.Module))
            if not key.startswith("_") and not registered:
                yield f"{name}.{key}", one, matters
    elif not whole:
        for key in INSIDE:
            with contextlib.suppress(Exception):  # of a property of any library
                one = getattr(value, key, None)
                if one is not None and not isinstance(one, PLAIN):
                    yield f"{name}.{key}", one, None


def _file_of(kind: type) -> str:
    return getattr(sys.modules.get(kind.__module__), "__file__", None) or ""


def _digest(value: Any) -> str:
    """Return a text that is equal for equal contents of arrays, numbers, texts and containers of these."""
    found = hashlib.sha256()
    _feed(found, value, DEPTH + 3)
    return found.hexdigest()


def _feed(into: Any, value: Any, depth: int) -> None:
    if isinstance(value, Tensor):
        value = value.detach()
        into.update(f"{value.dtype} {tuple(value.shape)}".encode())
        flat = value.reshape(-1)
        flat = flat[:: max(1, flat.numel() // MOST_NUMBERS)].cpu().contiguous()
        into.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(value, np.ndarray):
        into.update(f"{value.dtype} {value.shape}".encode())
        flat = value.reshape(-1)[:: max(1, value.size // MOST_NUMBERS)]
        into.update(repr(flat.tolist()).encode() if value.dtype == object else flat.tobytes())
    elif depth > 0 and isinstance(value, Mapping):
        for key, one in value.items():
            into.update(repr(key).encode())
            _feed(into, one, depth - 1)
    elif depth > 0 and isinstance(value, list | tuple):
        for one in value:
            _feed(into, one, depth - 1)
    elif isinstance(value, PLAIN):
        into.update(repr(value).encode())
    else:
        into.update(type(value).__name__.encode())
