"""TensorBoard: event files of each run, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from floodsearch.loggers.run_log import Epochs, LoggedRun


class TensorBoardLog:
    """The event files of a run.

    A worker that goes on with a run adds a file to those that are there, from the epoch after their last one.

    Args:
        run: that is logged.
    """

    def __init__(self, run: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder.within(f"tensorboard/{run.name}")
        folder.make()
        self._last = _last_steps(folder.path)
        self.writer = SummaryWriter(str(folder.path))
        if not self._last:
            shown = {key: _shown(value) for key, value in run.parameters.items()}
            self.writer.add_hparams(shown, {}, run_name=".")

    def last(self, metric: str) -> int:
        """Return the last epoch of a metric in the files that were there."""
        return self._last.get(metric, 0)

    def write(self, epochs: Epochs) -> None:
        """Add epochs as steps of scalars, and flush."""
        for epoch, numbers in epochs.items():
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self, ending: str) -> None:
        """Close the file; how the run ended is not in it."""
        del ending
        self.writer.close()


def _shown(value: object) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _last_steps(folder: Path) -> Mapping[str, int]:
    """Return the last step of each scalar in the event files of a folder, also in one that was cut off."""
    return dict(_steps(folder)) if any(folder.glob("events.out.*")) else {}


def _steps(folder: Path) -> Iterator[tuple[str, int]]:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 1})  # the last one of each
    events.Reload()
    for name in events.Tags()[SCALARS]:
        yield name, max(event.step for event in events.Scalars(name))
