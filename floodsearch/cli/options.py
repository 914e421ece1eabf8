"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from floodsearch.artifacts.files import expanded, is_url


def at_home(path: Path | None) -> Path | None:
    """Return a path of the command line with `~` as a shell expands it: in `--out=~/x` none does."""
    return None if path is None else expanded(path)


def place(where: str) -> str:
    """Return a URL of the command line as it is, a folder as a shell expands it."""
    return where if is_url(where) else str(expanded(Path(where)))


StudyFile = Annotated[
    Path,
    typer.Argument(metavar="STUDY.toml", help="The study file.", show_default=False, callback=at_home),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Instead of what the file says: training.seeds=1; repeatable."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The study's name.", show_default=False)]
Storage = Annotated[
    str,
    typer.Option(
        envvar="FLOODSEARCH_STORAGE", metavar="URL", help="sqlite:///PATH or postgresql://USER@HOST/DATABASE"
    ),
]
Checkpoints = Annotated[
    str,
    typer.Option(
        envvar="FLOODSEARCH_CHECKPOINTS",
        metavar="FOLDER",
        help="Or s3://BUCKET/PREFIX; what machines share, they go on from.",
        callback=place,
    ),
]
Logs = Annotated[
    Path,
    typer.Option(
        envvar="FLOODSEARCH_LOGS",
        metavar="FOLDER",
        help="What workers and scripts say, a folder a study.",
        callback=at_home,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
