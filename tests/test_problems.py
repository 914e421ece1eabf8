"""The list of what is wrong with a study file: every problem once, from the first table to the whole."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from floodsearch.catalog import known
from floodsearch.errors import StudyFileError
from floodsearch.study.reader import parse

CASES = [
    case.partition("\n")
    for case in Path(__file__).with_name("problems.txt").read_text(encoding="utf-8").split("=== ")[1:]
]
"""The name of each case, and a study file with the problems that it has after a line of dashes."""


@pytest.mark.parametrize("case", [text for _, _, text in CASES], ids=[name for name, _, _ in CASES])
def test_the_problems_of_a_file_are_listed_in_one_order(case: str) -> None:
    """What is wrong in several tables, and between them, is listed to the letter, in the order of the checks.

    First what this version has not and unknown tables, then the tables with the same settings in each study,
    what is trained, the settings of sampler, pruner and schedule, the number of trials, the name; what these
    methods say themselves only where nothing else is wrong.
    """
    content, _, problems = case.partition("---\n")
    with pytest.raises(StudyFileError) as error:
        parse(tomllib.loads(content), known())
    assert [f"{key}: {message}" for key, message in error.value.problems] == problems.strip().split("\n")
