"""The commands that end a search: stop, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from floodsearch.cli.opening import open_study
from floodsearch.cli.options import Checkpoints, Name, Storage
from floodsearch.cli.printing import confirm, echo, say
from floodsearch.defaults import CHECKPOINTS, STORAGE
from floodsearch.errors import UsageError

if TYPE_CHECKING:
    from floodsearch.artifacts.files import Files


def stop(name: Name, storage: Storage = STORAGE) -> None:
    """Let the workers of a study hand back what they train and leave; launching it again resumes."""
    from floodsearch.queue import STOPPED_BY_COMMAND

    with open_study(storage, name) as study:
        study.require_unchanged()
        study.stop(STOPPED_BY_COMMAND)
        echo(f"{name}: no more tickets are handed out; workers leave within a few seconds")


def delete(
    name: Name,
    storage: Storage = STORAGE,
    checkpoints: Checkpoints = str(CHECKPOINTS),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a study with all its data, its checkpoints and the weights that were kept."""
    from floodsearch.artifacts.files import check_place, files_at
    from floodsearch.queries import status as status_of
    from floodsearch.storage.studies import delete_study

    check_place(checkpoints)
    with open_study(storage, name) as study:
        now, copied = status_of(study), study.others()
        if now.workers and not (copied and study.name != study.spec.name):  # which train the original
            trains = f"{now.workers} worker{'s' * (now.workers > 1)}"
            raise UsageError(
                f"study {name!r} is trained by {trains} now; end that with floodsearch stop {name}"
            )
        if not yes:
            trained = f"{now.trials.total} tickets, {now.epochs_run:,} epochs trained"
            confirm(f"delete study {name} ({trained}) from {study.database.name}?")
        if copied := delete_study(study):
            say(f"its curves and files stay: {', '.join(copied)} has them too, as somebody copied the study")
        else:
            _remove_files(files_at(checkpoints).within(study.folder))
    echo(f"{name}: deleted")


def _remove_files(files: Files) -> None:
    """Remove the files of a study that is gone, and say what stays of them."""
    from floodsearch.artifacts.names import remove_files

    try:
        if left := remove_files(files):
            say(f"{files} stays, with what is not ours: {', '.join(left)}")
    except OSError as error:
        say(f"its checkpoints stay: {error}")
