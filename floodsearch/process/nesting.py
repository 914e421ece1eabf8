"""No search inside a search: where code of a study's own runs, no other search and no worker is started.

A file that starts a search when it is imported would do so in each of its workers, which import it too. A
trainer that runs its own command line again, once a device, would start a worker beside the one that waits
for it. The mark is in the environment, so that it holds in all that such a process starts, at any depth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from floodsearch.errors import NestedError

MARK = "FLOODSEARCH_WORKER"
"""The environment variable that says inside of what a process is."""
IMPORT = "the import of"

_places: list[_Place] = []


@dataclass(eq=False)
class _Place:
    """A place in this process where code of a study's own runs, and what was refused to it."""

    name: str
    on_refusal: Callable[[str], object]
    refusal: NestedError | None = None


@contextmanager
def inside(name: str, on_refusal: Callable[[str], object] = lambda reason: None) -> Iterator[None]:
    """Refuse searches and workers for as long as this lasts, in this process and in those that it starts.

    Args:
        name: of the place, for the message.
        on_refusal: is told as soon as something is refused here, whatever becomes of the exception.

    Raises:
        NestedError: at the end, if something was refused in this process: the code may have caught it.
    """
    inherited = None if _places else os.environ.get(MARK)
    place = _Place(name, on_refusal)
    _places.append(place)
    os.environ[MARK] = name
    try:
        yield
    except BaseException:
        if place.refusal is not None:
            raise place.refusal from None
        raise
    finally:
        _places.remove(place)
        outer = _places[-1].name if _places else inherited
        if outer is None:
            os.environ.pop(MARK, None)
        else:
            os.environ[MARK] = outer
    if place.refusal is not None:
        raise place.refusal


@contextmanager
def importing(reference: str) -> Iterator[None]:
    """Be inside of an import of code of the user's own, or of a call that describes it.

    Raises:
        NestedError: if such an import has started this process, which would import without end, or as
            `inside` does.
    """
    if not _places and os.environ.get(MARK, "").startswith(IMPORT):
        refuse("another import of a study's code")
    with inside(f"{IMPORT} {reference!r}"):
        yield


def refuse(what: str) -> None:
    """Refuse to start something, if this process is inside of a worker or an import.

    Raises:
        NestedError: if it is.
    """
    if (where := os.environ.get(MARK)) is None:
        return
    error = NestedError(
        f"{what} cannot be started inside of {where}; where a file does so when it is imported, put that "
        'under `if __name__ == "__main__":`'
    )
    for place in _places:
        place.refusal = error
        place.on_refusal(str(error))
    raise error
