"""The kinds of scripts of this suite, and the mistakes that are planted in them.

Each kind is in `scripts/`: as a stranger wrote it (`NAME_before.py`), changed so that its levels can be
searched (`NAME.py`), and its study file (`NAME.toml`). A trap is a small change of the second one.
"""

from __future__ import annotations

import difflib
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
PLAIN, ARGPARSE = 10, 12
"""Lines that may differ between a script and its searched version: those taken out and those put in."""

Patch = tuple[tuple[str, str], ...]
"""Texts of the searched version, each with what a trap writes in its place."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of script.

    Args:
        name: of its files.
        lines: that may differ at most.
        seed: that its original seeds by.
        entry: the function that trains a run, in the module of its study file.
    """

    name: str
    lines: int = PLAIN
    seed: int = 0
    entry: str = "main"

    @property
    def before(self) -> Path:
        """The original."""
        return SCRIPTS / f"{self.name}_before.py"

    @property
    def after(self) -> Path:
        """What is searched."""
        return SCRIPTS / f"{self.name}.py"

    @property
    def study(self) -> Path:
        """The study file."""
        return SCRIPTS / f"{self.name}.toml"

    @property
    def module(self) -> Path:
        """The file with the function that the study file names."""
        search = SCRIPTS / f"{self.name}_search.py"
        return search if search.exists() else self.after

    @property
    def title(self) -> str:
        """The name of its study."""
        return self.name.replace("_", "-")

    @property
    def highest(self) -> float:
        """The highest level of its study."""
        return float(tomllib.loads(self.study.read_text())["levels"]["high"])

    def changed(self) -> list[str]:
        """Return the lines that differ between the original and what is searched."""
        texts = (path.read_text().splitlines() for path in (self.before, self.after))
        return [line for line in difflib.ndiff(*texts) if line[:2] in ("- ", "+ ") and line[2:].strip()]

    def put(self, folder: Path, patch: Patch = ()) -> Path:
        """Copy what is searched into a folder, with a trap if one is given; return its study file."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.module, self.study):
            shutil.copy(path, folder)
        (folder / self.after.name).write_text(patched(self.after.read_text(), patch))
        return folder / self.study.name


def patched(text: str, patch: Patch) -> str:
    """Return a text with some parts of it written anew, each of which is in it once."""
    for old, new in patch:
        if text.count(old) != 1:
            raise ValueError(f"{old!r} is {text.count(old)} times in the text")
        text = text.replace(old, new)
    return text


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="mnist", lines=ARGPARSE, seed=1),
        Kind(name="char_gpt", seed=1337, entry="train"),
        Kind(name="word_lstm", seed=1111),
        Kind(name="references", lines=ARGPARSE, entry="train"),
        Kind(name="lightning_mlp", seed=42),
        Kind(name="gan"),
        Kind(name="hf_bert", seed=42),
        Kind(name="vae", lines=ARGPARSE, seed=1),
        Kind(name="neural_net"),
        Kind(name="lbfgs"),
        Kind(name="tabular", seed=42, entry="run_fold"),
        Kind(name="one_logit", entry="train"),
        Kind(name="notebook", entry="train_model"),
        Kind(name="own_checkpoints", lines=ARGPARSE),
    )
}
