"""Forecasts beside what the search then runs, for the study files that come with floodsearch.

    python -m tests.benchmarks.forecasts [FILE ...]

Each study is forecast by `check`, with and without `--measure cpu`, and searched by one worker. Those of 500
epochs are shortened. What needs images that are not here is left out. It prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

STUDIES = Path(__file__).parents[2] / "studies"
DEFAULT = (
    "examples/plain.toml",
    "examples/words.toml",
    "examples/regression.toml",
    "examples/command.toml",
    "examples/lightning.toml",
    "examples/huggingface.toml",
    "smoke.toml",
    "digits_10.toml",
    "two_gaussians_01.toml",
    "two_gaussians_10.toml",
    "sinusoid_10.toml",
    "spiral_10.toml",
)
SHORT = {r"epochs = 500": "epochs = 100", r"seeds = 5": "seeds = 2"}
"""What is changed in a study of 500 epochs."""


def shortened(path: Path) -> tuple[str, bool]:
    """Return the content of a study file, and whether it was shortened."""
    content = path.read_text(encoding="utf-8")
    if "epochs = 500" not in content:
        return content, False
    for long, short in SHORT.items():
        content = re.sub(long, short, content)
    return content, True


def asked(folder: Path, *arguments: str) -> dict[str, Any]:
    """Return what a command of ours prints as JSON."""
    command = [sys.executable, "-m", "floodsearch", *arguments, "--json"]
    printed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def row(path: Path) -> str:
    """Return the row of a study: what is forecast, and what it then runs."""
    content, short = shortened(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for code in path.parent.glob("*.py"):
            (folder / code.name).write_bytes(code.read_bytes())
        (folder / "study.toml").write_text(content, encoding="utf-8")
        plain = asked(folder, "check", "study.toml")
        told = asked(folder, "check", "study.toml", "--measure", "cpu")
        launch = [sys.executable, "-m", "floodsearch", "launch", "study.toml", "--workers", "1"]
        subprocess.run(launch, cwd=folder, check=True, capture_output=True)
        run = asked(folder, "best", plain["name"])["epochs_run"]
    cells = [
        path.stem + (", shortened" if short else ""),
        f"{plain['epochs_least']:,} to {plain['epochs_most']:,}",
        *(f"{one['epochs_expected']:,} ({one['epochs_expected'] / run - 1:+.0%})" for one in (plain, told)),
        f"{told['epochs_tried']:,}",
        f"{run:,}",
        f"{plain['epochs_exhaustive']:,}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, default=[STUDIES / name for name in DEFAULT])
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}\n")
    print("| study | range | likely | with `--measure` | trained for it | run | exhaustive |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for path in parser.parse_args().files:
        print(row(path), flush=True)


if __name__ == "__main__":
    main()
