"""`floodsearch check --try` tells every mistake that is planted in a script, and nothing of one without.

One mistake for each kind of finding, those that only such scripts make, and the clean scripts that train in
no time. `python -m tests.wild.trying` has all of them in all kinds; test_try.py has the others in a loop.
"""

from __future__ import annotations

import pytest

from tests.wild.kinds import KINDS
from tests.wild.traps import QUICK, TRAPS, quickest
from tests.wild.trying import try_out

OF_A_PLAIN_LOOP = {
    "scheduler forgotten",
    "optimizer forgotten",
    "scaler forgotten",
    "counter of its own",
    "global list",
    "global generator",
    "flood forgotten",
    "evaluation flooded",
    "metric under another name",
}
"""Mistakes that test_try.py plants, too, of kinds of findings of which others are planted here."""

# Of other libraries, none of them about floodsearch.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", QUICK[:4])
def test_nothing_is_said_of_a_clean_script(name, tmp_path, one_thread):
    tried = try_out(KINDS[name].put(tmp_path))
    assert not tried.kinds, tried.said


@pytest.mark.parametrize("trap", [name for name in TRAPS if name not in OF_A_PLAIN_LOOP])
def test_a_mistake_is_told(trap, tmp_path, one_thread):
    name = quickest(trap)
    tried = try_out(KINDS[name].put(tmp_path, TRAPS[trap].planted[name]))
    assert TRAPS[trap].findings & tried.kinds, tried.said or "nothing was said"
