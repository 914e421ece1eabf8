"""The weights of the answer, copied from where they were kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from floodsearch.artifacts.files import files_at
from floodsearch.artifacts.names import weights_name
from floodsearch.artifacts.weights import KeptWeights
from floodsearch.errors import UsageError
from floodsearch.records import BestLevel, TrialRecord
from floodsearch.storage import tables
from floodsearch.storage.studies import StoredStudy, read_trials


def copy_weights(study: StoredStudy, best: BestLevel, checkpoints: Path | str, out: Path) -> list[Path]:
    """Copy the weights of a study's answer to a folder, as `seed-0.pt` and so on; return the files.

    Args:
        study: which study.
        best: its answer.
        checkpoints: the folder or URL of those of all studies.
        out: is made if it is missing; must hold no weights yet, which could be of another level.

    Raises:
        UsageError: if they were not kept, are not all here, or cannot be copied.
    """
    keep = study.spec.training.keep
    if keep == "none":
        raise UsageError(
            f'study {study.name!r} keeps no weights; write keep = "last" or "best" in its [training] before '
            "it is trained, or train it again under another name"
        )
    trials = read_trials(study, results=False)
    trial = next(one for one in trials if one.trial == best.trial)
    kept = KeptWeights(files_at(checkpoints).within(study.folder))
    seeds = study.spec.training.seeds[: trial.seeds]
    files = {seed: weights_name(trial.ticket, seed, trial.epochs, keep) for seed in seeds}
    there = kept.files.names("*")
    if missing := [str(seed) for seed, name in files.items() if name not in there]:
        hosts = _hosts(study, [one for one in trials if one.ticket == trial.ticket])
        raise UsageError(
            f"{kept.files} has no weights of ticket {trial.ticket} for seeds {', '.join(missing)}; give "
            f"--checkpoints as its workers had it (on {hosts}), or copy the files here; if there are none, "
            f'keep = "{keep}" came too late for this ticket, or the log of its worker says why'
        )
    copied = {out / f"seed-{seed}.pt": name for seed, name in files.items()}
    try:
        if others := sorted(out.glob("seed-*.pt")):
            raise UsageError(
                f"{out} holds {others[0].name} already, maybe of another level; give a new folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        for to, name in copied.items():
            to.write_bytes(kept.files.read(name))
    except OSError as error:
        raise UsageError(f"the weights cannot be copied to {out}: {error.strerror or error}") from None
    return list(copied)


def _hosts(study: StoredStudy, trials: Sequence[TrialRecord]) -> str:
    """Return the machines on which trials were trained."""
    workers = {one.id: one.host for one in tables.read_workers(study.database, study.uuid)}
    hosts = {workers[one.worker] for one in trials if one.worker in workers}
    return ", ".join(sorted(hosts)) or "machines that are not known"
