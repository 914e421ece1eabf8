"""The command that looks ahead: what a study file says, and what its search would cost."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from floodsearch.cli.opening import open_study, read_spec
from floodsearch.cli.options import AsJson, Set, StudyFile
from floodsearch.cli.printing import echo, echo_json, say
from floodsearch.defaults import REPRODUCIBLE
from floodsearch.errors import FAILED, DamagedError, UsageError

if TYPE_CHECKING:
    from floodsearch.cost.outlook import Outlook
    from floodsearch.records import Pilot
    from floodsearch.study.spec import Spec
    from floodsearch.tryout.result import Report


def check(
    study: StudyFile,
    storage: Annotated[
        str | None,
        typer.Option(envvar="FLOODSEARCH_STORAGE", metavar="URL", help="Where it was begun: tells the time."),
    ] = None,
    speed: Annotated[
        str | None,
        typer.Option(
            "--speed", metavar="SPEED", help="Samples a second: 21000, or by runs at once: 1=21000,4=70000."
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE", help="Train for some seconds on this device, to tell the cost and the time."
        ),
    ] = None,
    settings: Set = None,
    tries: Annotated[
        bool,
        typer.Option("--try", help="Train its code for a few epochs, to find out what is wrong with it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the resolved study with all defaults, or all its problems, and what it would cost."""
    from floodsearch.report.documents import check_document, try_document

    spec = read_spec(study, settings)
    os.environ.setdefault(*REPRODUCIBLE)  # as workers do
    outlook = _look_ahead(study, spec, speed, measure)
    if outlook.seconds is None and outlook.epochs_expected is not None and storage is not None:
        outlook = outlook.at_pace_of(_pilot_of(storage, spec.name))
    tried = _tried(study, spec, outlook) if tries else None
    if as_json:
        document = check_document(spec, outlook)
        echo_json(document if tried is None else {**document, "try": try_document(tried)})
    else:
        _show(spec, outlook, tried)
    if tried is not None and tried.findings:
        raise typer.Exit(FAILED)


def _look_ahead(path: Path, spec: Spec, speed: str | None, measure: str | None) -> Outlook:
    """Return what a search would cost.

    Code of the user's own that is trained for that finds the current folder in a mirror: a checkpoint that it
    left there would be gone on from by the search.
    """
    from floodsearch.cost.outlook import look_ahead
    from floodsearch.tryout.folder import mirrored
    from floodsearch.usercode.reference import beside

    folders = beside(path)
    if measure is None or spec.task is not None:
        return look_ahead(spec, speed=speed, measure=measure, folders=folders)
    with tempfile.TemporaryDirectory(prefix="floodsearch-measure-") as room, mirrored(Path(room)):
        return look_ahead(spec, speed=speed, measure=measure, folders=folders)


def _show(spec: Spec, outlook: Outlook, tried: Report | None) -> None:
    """Print the study, what its search would cost, and what a try has come to."""
    from floodsearch.catalog import first_command
    from floodsearch.report.text import outlook_text, spec_text, try_text
    from floodsearch.study.trust import token_of

    echo(spec_text(spec))
    echo(outlook_text(spec, outlook))
    if (command := first_command(spec)) is not None:
        echo(f"its first run: {command}")
    if (trust := token_of(spec)) is not None:
        echo(f"other machines trust its code by: floodsearch work {spec.name} --trust {shlex.quote(trust)}")
    if tried is not None:
        echo(try_text(tried))


def _tried(path: Path, spec: Spec, outlook: Outlook) -> Report:
    """Train the code of a study file for a few epochs, and return what that has come to."""
    from floodsearch.tryout.rehearse import try_out
    from floodsearch.usercode.reference import beside

    return try_out(spec, beside(path), outlook, say)


def _pilot_of(storage: str, name: str) -> Pilot | None:
    """Return the record of a study's pilot; None where there is none, or no such study, which is no error."""
    try:
        with open_study(storage, name, read_only=True) as study:
            return study.pilot
    except (UsageError, DamagedError) as error:
        say(f"the time is not known: {error}")
        return None
