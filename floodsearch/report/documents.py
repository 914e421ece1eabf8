"""Records as JSON documents: what `--json` prints, for whatever program asks."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from floodsearch.cost.outlook import Outlook
from floodsearch.findings import BestLevel, StudyStatus
from floodsearch.study.spec import Spec
from floodsearch.study.trust import token_of
from floodsearch.tryout.result import Report

Document = dict[str, Any]


def best_document(best: BestLevel) -> Document:
    """Return the answer of a study, a field of the record each."""
    return asdict(best)


def status_document(status: StudyStatus) -> Document:
    """Return the status of a study, a field of the record each."""
    return asdict(status)


def check_document(spec: Spec, outlook: Outlook) -> Document:
    """Return a spec with all its defaults, and what its search would take."""
    stages = [
        {
            "after": one.stage.after,
            "until": one.stage.until,
            "runs": one.stage.runs,
            "epochs": one.stage.epochs,
            "samples": one.samples,
            "samples_a_second": one.speed,
        }
        for one in outlook.stages
    ]
    return {
        **spec.model_dump(mode="json"),
        "fingerprint": spec.fingerprint(),
        "trust": token_of(spec),
        "tickets": outlook.tickets,
        "epochs_exhaustive": outlook.epochs_exhaustive,
        "epochs_expected": outlook.epochs_expected,
        "epochs_least": outlook.epochs_least,
        "epochs_most": outlook.epochs_most,
        "epochs_tried": outlook.epochs_tried,
        "seconds_expected": outlook.seconds,
        "stages": stages,
    }


def try_document(tried: Report) -> Document:
    """Return what a try of a study's code has come to."""
    return {
        "findings": [finding._asdict() for finding in tried.findings],
        "not_tried": list(tried.not_tried),
        "runs": tried.runs,
        "seconds": tried.seconds,
        "seconds_epoch": tried.epoch,
        "seconds_expected": tried.seconds_expected,
        "seconds_exhaustive": tried.seconds_exhaustive,
    }


def json_text(document: object, *, indent: int) -> str:
    """Return a document as text, of which a terminal shows every character."""
    # DEL is the only one that JSON leaves as it is, and a terminal does not show.
    return json.dumps(document, indent=indent).replace("\x7f", "\\u007f")
