"""Scripts as strangers write them, of many kinds: how little they change, and that they train right."""

from __future__ import annotations

import json

import pytest

from tests.wild.kinds import KINDS
from tests.wild.searches import put
from tests.wild.training import EPOCHS, run_before, train
from tests.wild.traps import TRAPS, quickest
from tests.wild.trying import inside

LOOPS = [kind for name, kind in KINDS.items() if name not in ("own_checkpoints", "hf_bert", "lightning_mlp")]
"""All but the command and those of libraries of trainers, which the tests of their adapters train.

`python -m tests.wild` has all of them.
"""
PARTS = (1, 3, EPOCHS)
each_loop = pytest.mark.parametrize("kind", LOOPS, ids=lambda kind: kind.name)
# Of other libraries, none of them about floodsearch.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_few_lines_of_a_script_change(kind):
    """Ten of a plain one at most, and twelve of one with argparse: those taken out and those put in."""
    assert 0 < len(kind.changed()) <= kind.lines


@each_loop
def test_level_0_is_what_the_script_was(kind, tmp_path, one_thread):
    """With its seed and at level 0 it prints what the original printed, to the last digit."""
    kind.put(tmp_path)
    expected = run_before(kind)
    assert expected.count("\n") >= EPOCHS
    assert train(kind, tmp_path, level=0.0, seed=kind.seed).printed == expected


@each_loop
def test_a_flooded_run_in_parts_is_the_run_in_one_part(kind, tmp_path, one_thread):
    """Paused twice it reports the same numbers, to the bit; and it has flooded."""
    kind.put(tmp_path)
    whole = train(kind, tmp_path, level=kind.highest, seed=3)
    assert any(record.flooded for record in whole.records)
    assert train(kind, tmp_path, level=kind.highest, seed=3, parts=PARTS).records == whole.records


@pytest.mark.parametrize("trap", [name for name, trap in TRAPS.items() if "pause" in trap.findings])
def test_what_is_forgotten_is_missed(trap, tmp_path, one_thread):
    """A trap that concerns pauses is one: a run in parts is another run than the whole."""
    kind = KINDS[quickest(trap)]
    kind.put(tmp_path, TRAPS[trap].planted[kind.name])
    whole = train(kind, tmp_path, level=0.0, seed=3, parts=(4,))
    assert train(kind, tmp_path, level=0.0, seed=3, parts=(1, 3, 4)).records != whole.records


def test_a_script_is_searched_under_halving(tmp_path, command, monkeypatch, one_thread):
    """It comes to an answer, has flooded, and costs no more epochs than its grid."""
    kind = KINDS["one_logit"]
    study = put(kind, tmp_path, "halving")
    monkeypatch.setenv("FLOODSEARCH_STORAGE", f"sqlite:///{tmp_path}/floodsearch.db")
    with inside(tmp_path):
        for words in (["create", study.name], ["work", study.name, "--device", "cpu"]):
            status, _, errors = command(*words)
            assert status == 0, errors
        found = json.loads(command("best", kind.title, "--json")[1])
    assert found["finished"]
    assert found["baseline"]
    assert found["tried"], "levels that have flooded"
    assert found["epochs_run"] <= found["epochs_exhaustive"]
