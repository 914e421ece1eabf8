"""Settings of the command line in the place of those of a study file."""

from __future__ import annotations

from pathlib import Path

import pytest

STUDY = """
name = "tiny"
task = "two_gaussians"

[options]
width = 8
depth = 1

[levels]
high = 0.5
count = 3

[training]
epochs = 4
seeds = 2
"""


@pytest.fixture(autouse=True)
def study(tmp_path, monkeypatch):
    """The study file, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(STUDY)


def check(command, *settings):
    """Return the exit status of `check`, its output and what it said to the person."""
    return command("check", "tiny.toml", *(word for one in settings for word in ("--set", one)))


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("training.seeds=[3, 4]", "training.seeds = [3, 4]"),
        ("name=other-name", 'name = "other-name"'),
        ("training.optimizer = sgd", 'training.recipe.optimizer = "sgd"'),
        ("search.metric='val_loss'", 'search.metric = "val_loss"'),
        ("budget.hours=1.5", "budget.hours = 1.5"),
        ("training.weight_decay.choices=[0.0, 0.1]", "training.recipe.weight_decay.choices = [0.0, 0.1]"),
        ("halving={levels=3}", "settings.halving.levels = 3"),
    ],
)
def test_any_key_is_set_to_any_value(command, setting, line):
    """Also new keys and tables; a bare word is a string."""
    status, out, said = check(command, setting)
    assert (status, said) == (0, "")
    assert line in out.splitlines()


def test_settings_are_put_in_their_order_and_an_empty_one_removes_a_key(command):
    status, out, _ = check(command, "training.seeds=4", "training.seeds=1", "levels.count=", "levels.step=.1")
    assert status == 2  # .1 is no number in TOML, and so a string
    status, out, said = check(
        command, "training.seeds=4", "training.seeds=1", "levels.count=", "levels.step=0.1"
    )
    assert (status, said) == (0, "")
    assert "training.seeds = [0]" in out.splitlines()
    assert "levels.step = 0.1" in out.splitlines()


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("training.sedes=1", "--set training.sedes: unknown key, did you mean 'seeds'?"),
        ("training.epochs=many", "--set training.epochs: 'many' should be a valid integer"),
        ("levels.step=0.1", "--set levels.step: given together with levels.count; keep one of the two"),
        ("heuristic.step=0.1", "--set heuristic: these settings have no use here"),
        ("name.part=1", "--set name.part: name is 'tiny', not a table"),
        ("training.seeds", "--set training.seeds: is not KEY=VALUE"),
        ("training..seeds=1", "--set training..seeds=1: is not KEY=VALUE"),
        ("a=1\nb=2", "--set a: unknown key"),
    ],
)
def test_a_setting_is_checked_like_the_file_and_named(command, setting, problem):
    """The message is that of the file, and says which option is meant."""
    status, _, said = check(command, setting)
    assert status == 2
    assert said.splitlines()[0] == "floodsearch: tiny.toml has 1 problem"
    assert said.splitlines()[1].startswith(f"  {problem}")


def test_problems_of_the_file_and_of_settings_are_told_at_once(command):
    Path("tiny.toml").write_text(STUDY.replace("count = 3", "count = -3"))
    _, _, said = check(command, "training.epochs=0")
    assert [line.split(":")[0].strip() for line in said.splitlines()[1:]] == [
        "levels.count",
        "--set training.epochs",
    ]


def test_a_study_is_created_and_joined_by_its_file_with_settings(command):
    """What is stored is the file with the settings; a name alone takes none."""
    settings = ("--set", "training.seeds=1", "--set", "training.epochs=2")
    assert command("create", "tiny.toml", *settings)[0] == 0
    assert command("work", "tiny.toml", *settings, "--device", "cpu")[0] == 0
    assert '"epochs_exhaustive": 6' in command("status", "tiny", "--json")[1]
    status, _, said = command("work", "tiny", *settings)
    assert status == 2
    assert said == (
        "floodsearch: --set training.seeds=1 changes a study file, and tiny is a study; give its file\n"
    )


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_a_launch_in_the_background_has_the_settings(monkeypatch, database, make_spec, tmp_path):
    """The process that goes on is given what this one was."""
    from floodsearch import queue
    from floodsearch.launchers import local
    from floodsearch.launchers.crew import Crew
    from floodsearch.storage.studies import put_study

    study = put_study(database, make_spec())
    queue.fill(study)
    given = []

    class Started:
        pid = 1

        def __init__(self, words, **_):
            given.extend(words)

    monkeypatch.setattr(local.subprocess, "Popen", Started)
    launch = local.Launch(study, "sqlite:///x.db", Crew(devices=("cpu",), threads=1), logs=tmp_path / "logs")
    local.detach(launch, Path("tiny.toml"), ["training.seeds=1", "name=tiny"])
    assert given[-2:] == ["--set=training.seeds=1", "--set=name=tiny"]
