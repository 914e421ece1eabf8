"""`floodsearch check --try` tells every mistake that is planted in a script, and nothing of one without.

Each mistake in one kind of script, and the clean scripts that train in no time; `python -m tests.wild.trying`
has all of them in all kinds.
"""

from __future__ import annotations

import pytest

from tests.wild.kinds import KINDS
from tests.wild.traps import TRAPS, planted
from tests.wild.trying import try_out

# Of other libraries, none of them about floodsearch.
pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ("one_logit", "lbfgs", "neural_net", "notebook", "tabular", "gan", "word_lstm", "vae", "references")
"""The kinds that start no process and import no large library, the quickest first."""


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_said_of_a_clean_script(name, tmp_path, one_thread):
    tried = try_out(KINDS[name].put(tmp_path))
    assert not tried.kinds, tried.said


def quickest(trap: str) -> str:
    """Return the quickest kind in which a trap is planted; any other if it is in none of the quick ones."""
    kinds = [kind for name, kind in planted() if name == trap]
    return next((kind for kind in QUICK if kind in kinds), kinds[0])


@pytest.mark.parametrize("trap", TRAPS)
def test_a_mistake_is_told(trap, tmp_path, one_thread):
    name = quickest(trap)
    tried = try_out(KINDS[name].put(tmp_path, TRAPS[trap].planted[name]))
    assert TRAPS[trap].findings & tried.kinds, tried.said or "nothing was said"
