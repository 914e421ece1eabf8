"""The tickets of a bracket that are still in a worker's hands, each until its end is written down."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Concatenate, Literal, ParamSpec

import torch

from floodsearch import queue
from floodsearch.artifacts.checkpoint import Checkpoints
from floodsearch.errors import DivergedError, MistakeError, TicketLostError
from floodsearch.queue import Ticket
from floodsearch.records import Attribute
from floodsearch.storage.notices import warn
from floodsearch.storage.retry import persistently
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.logged import Loggers
from floodsearch.worker.recorder import Recorder

Ending = Literal["complete", "pruned", "diverged", "failed", "lost", "handed back"]
Told = ParamSpec("Told")

log = logging.getLogger(__name__)


class HeldTickets:
    """Tickets of one study, until each is completed, pruned, failed, handed back or lost.

    Args:
        tickets: as they were taken.
        heartbeat: of the worker; it says which tickets are in its hands.
        loggers: are given what the tickets show.

    Attributes:
        alive: those whose end is not written down yet, by number.
        recorder: what they and the others have shown.
        at_once: how many of them are in training now.
        fits: how many may be taken at once from now on, where these were too many for the device's memory.
    """

    def __init__(self, tickets: Sequence[Ticket], heartbeat: Heartbeat, loggers: Loggers) -> None:
        self.alive = {ticket.number: ticket for ticket in tickets}
        self.study = tickets[0].study  # with its spec as of when the tickets were taken
        self.heartbeat = heartbeat
        self.recorder = Recorder(tickets, loggers)
        self.checkpoints = Checkpoints(heartbeat.settings.files(self.study))
        self.at_once = 0
        self.fits: int | None = None

    def tell(self) -> None:
        """Let the heartbeat say which tickets are in this worker's hands."""
        self.heartbeat.train(*self.alive)

    def write(self, numbers: Iterable[int], *, persistent: bool = False) -> set[int]:
        """Write the new records of tickets; return those that were taken from this worker, which it drops."""
        lost = self.recorder.write(numbers, persistent=persistent)
        for number in lost:
            log.warning("ticket %d was taken from this worker, which was thought dead", number)
            if (ticket := self.alive.pop(number, None)) is not None:
                self.recorder.loggers.close(ticket, "lost")
        if lost:
            self.tell()
        return lost

    def end(
        self,
        ticket: Ticket,
        ending: Ending,
        write: Callable[Concatenate[Ticket, Told], object],
        *args: Told.args,
        **named: Told.kwargs,
    ) -> None:
        """Write down how a ticket ended; one that was taken from this worker is dropped quietly.

        Args:
            ticket: that ended.
            ending: how, in a word for the log.
            write: the function of the queue that is given the ticket.
            *args: what else it is given.
            **named: the same, by name.
        """
        try:
            persistently(write, ticket, *args, **named)
        except TicketLostError as error:
            log.warning("%s", error)
            ending = "lost"
        log.info("ticket %d: %s", ticket.number, ending)
        self.recorder.loggers.close(ticket, ending)
        self.alive.pop(ticket.number, None)
        # After an error that came again the next attempt begins anew: it may be in what was gone on from.
        again = ending == "failed" and ticket.attempt > 1
        if again or ending in ("complete", "pruned", "diverged"):
            self.checkpoints.remove(ticket.number)
        self.tell()

    def fail(self, number: int, error: BaseException) -> None:
        """Write down that a ticket diverged or its code raised; one for which there is no memory waits."""
        if (ticket := self.alive.get(number)) is None:
            return
        self.write([number])
        self._end_with(ticket, error)
        if isinstance(error, MistakeError):
            self.heartbeat.leave.ask(str(error))
            self.checkpoints.clear()  # what was trained so is not gone on from when the mistake is mended

    def _end_with(self, ticket: Ticket, error: BaseException) -> None:
        """Write down how a ticket ended whose run raised an error."""
        if isinstance(error, DivergedError):
            log.info("ticket %d: %s", ticket.number, error)
            self.end(ticket, "diverged", queue.diverge, error)
        elif isinstance(error, torch.OutOfMemoryError) and self.at_once > 1:
            self.fits = max(1, self.at_once // 2)
            log.warning("out of memory: ticket %d waits to be trained with fewer others", ticket.number)
            told = "a device's memory held fewer runs than were to be trained at once: the others wait"
            warn(self.study, "out of memory", told)
            self.end(ticket, "handed back", queue.hand_back, Attribute.OUT_OF_MEMORY)
        else:
            log.error("ticket %d failed", ticket.number, exc_info=error)
            self.end(ticket, "failed", queue.fail, error)

    def hand_back(self) -> None:
        """Put all that are left back into the queue."""
        self.write(self.alive)
        for ticket in list(self.alive.values()):
            self.end(ticket, "handed back", queue.hand_back)
