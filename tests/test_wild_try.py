"""`floodsearch check --try` tells every mistake that is planted in a script, and nothing of one without.

Each mistake in one kind of script, and the clean scripts that train in no time; `python -m tests.wild.trying`
has all of them in all kinds.
"""

from __future__ import annotations

import pytest

from tests.wild.kinds import KINDS
from tests.wild.traps import QUICK, TRAPS, quickest
from tests.wild.trying import try_out

# Of other libraries, none of them about floodsearch.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", QUICK[:6])
def test_nothing_is_said_of_a_clean_script(name, tmp_path, one_thread):
    tried = try_out(KINDS[name].put(tmp_path))
    assert not tried.kinds, tried.said


@pytest.mark.parametrize("trap", TRAPS)
def test_a_mistake_is_told(trap, tmp_path, one_thread):
    name = quickest(trap)
    tried = try_out(KINDS[name].put(tmp_path, TRAPS[trap].planted[name]))
    assert TRAPS[trap].findings & tried.kinds, tried.said or "nothing was said"
