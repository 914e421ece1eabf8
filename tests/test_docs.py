"""The documents: what they show can be run as it stands, and they name all that there is."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from floodsearch.catalog import known
from floodsearch.cli import app
from floodsearch.cli.run import VARIABLES
from floodsearch.errors import DONE, FAILED, HANDED_BACK, INTERRUPTED, WRONG_USE
from floodsearch.findings import BestLevel
from floodsearch.flooding.schedules import SCHEDULES
from floodsearch.loggers.table import LOGGERS
from floodsearch.report import text as report_text
from floodsearch.search.pruners import PRUNERS
from floodsearch.search.samplers import SAMPLERS
from floodsearch.study.reader import parse
from floodsearch.tasks import TASKS

ROOT = Path(__file__).parent.parent
README, CONTRIBUTING, DOCS = ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs"
PAGES = [README, CONTRIBUTING, *sorted(DOCS.glob("*.md")), ROOT / "studies" / "README.md"]
TEXT = {path: path.read_text(encoding="utf-8") for path in PAGES}
MANUAL = "\n".join(text for path, text in TEXT.items() if path == README or path.parent == DOCS)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {option for one in COMMANDS.values() for parameter in one.params for option in parameter.opts}
BASE = {"name": "base", "task": "two_gaussians", "levels": {"high": 0.5, "count": 51}}
"""A study of which an example without a name is a part."""
READERS_OWN = """
import torch
from torch import nn

criterion = nn.CrossEntropyLoss()


def batches():
    x = torch.randn(80, 4)
    return [*zip(x.split(20), (x.sum(dim=1) > 0).long().split(20), strict=True)]


def build(seed):
    torch.manual_seed(seed)
    model = nn.Linear(4, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), batches()


def evaluate(model):
    with torch.no_grad():
        right = [(model(x).argmax(dim=1) == y).float() for x, y in batches()]
    return torch.cat(right).mean().item()
"""
"""What the loop of the README calls, and a reader has."""


Command = Callable[..., tuple[int, str, str]]


class Block(NamedTuple):
    """A block of code in a document."""

    page: Path
    line: int
    language: str
    fragment: bool
    code: str

    @property
    def file(self) -> str | None:
        """Return the name of the file that its first line says it is; None if it says none."""
        found = re.match(r"# (\w+\.(?:py|toml))\b", self.code)
        return found and found[1]


def blocks(*languages: str) -> list[Block]:
    """Return all blocks in these languages; a "fragment" is only a part of a program."""
    found = []
    for page, text in TEXT.items():
        for match in re.finditer(r"^```(\w*)( fragment)?\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
            language, fragment, code = match.groups()
            if language in languages:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Block(page, line, language, bool(fragment), code))
    return found


def named(block: Block) -> str:
    return f"{block.page.parent.name}/{block.page.name}:{block.line}"


def each(found: list[Block]) -> pytest.MarkDecorator:
    """Give a test one block after the other."""
    assert found
    return pytest.mark.parametrize("block", found, ids=named)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def problem(words: list[str]) -> str | None:
    """Return what is wrong with a command line; it may be a bare name, as of a command in a sentence."""
    name, *arguments = words
    if name not in COMMANDS:
        return f"there is no command {name}"
    try:
        COMMANDS[name].make_context(name, list(arguments))
    except Exception as error:
        bare = not arguments and type(error).__name__ == "MissingParameter"
        return None if bare else f"{' '.join(words)}: {error}"
    return None


@pytest.fixture
def beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[str, str]], None]]:
    """Write files into a folder of their own, which is the current one; forget their modules at the end."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            Path(name).write_text(text, encoding="utf-8")

    yield write
    for path in tmp_path.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


def test_the_readme_is_short_enough_to_be_read() -> None:
    """The README has at most 150 lines, and CONTRIBUTING 90."""
    assert TEXT[README].count("\n") <= 150
    assert TEXT[CONTRIBUTING].count("\n") <= 90


def test_every_page_stands_in_the_index() -> None:
    """The first page of the manual leads to each of the others."""
    index = TEXT[DOCS / "README.md"]
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index


def test_the_manual_names_every_command_and_table_entry() -> None:
    """README and manual mention every command, option, variable, and entry of a table."""
    for command in COMMANDS:
        assert f"floodsearch {command}" in MANUAL
    for option in OPTIONS - {"--help", "-h"}:
        assert not option.startswith("-") or option in MANUAL, option
    for variable in VARIABLES:
        assert f"`{variable}`" in MANUAL
    for name in (*TASKS, *SAMPLERS, *PRUNERS, *SCHEDULES, *LOGGERS):
        assert f"`{name}`" in MANUAL


def test_the_map_of_the_code_has_every_file() -> None:
    """The map of the code has a line for each module."""
    package = ROOT / "floodsearch"
    for path in package.rglob("*.py"):
        if path.name != "__init__.py":
            name = path.relative_to(package).as_posix()
            assert f"`{name}`" in TEXT[DOCS / "code.md"], f"{path} is not in the map"


def test_links_resolve() -> None:
    """Every relative link of a document leads to a file, and to a heading in it."""
    for page, text in TEXT.items():
        for link, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
            if link.startswith("http"):
                continue
            target = (page.parent / link).resolve() if link else page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(TEXT[target]), f"{page}: {link}#{anchor}"


def offered(module: str) -> set[str]:
    """Return the names that one of our modules has; it is not imported, as some import large libraries."""
    if module in ("floodsearch", "floodsearch.search"):  # their names are resolved when they are used
        return set(importlib.import_module(module).__all__)
    found = importlib.util.find_spec(module)
    assert found is not None, f"there is no {module}"
    names: set[str] = set()
    for node in ast.parse(Path(str(found.origin)).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            names |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    return names


@each(blocks("python"))
def test_code_that_is_shown_compiles(block: Block) -> None:
    """It is valid Python, and all that it imports of ours is there."""
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("floodsearch"):
            assert {alias.name for alias in node.names} <= offered(str(node.module)), ast.unparse(node)


@each([block for block in blocks("toml") if "name" not in tomllib.loads(block.code)])
def test_a_part_of_a_study_file_that_is_shown_is_valid(block: Block) -> None:
    """It makes a valid study file of a small one."""
    parse({**BASE, **tomllib.loads(block.code)}, known())


@each([block for block in blocks("toml") if "name" in tomllib.loads(block.code)])
def test_a_study_file_that_is_shown_is_valid(
    block: Block, beside_each_other: Callable[[dict[str, str]], None], command: Command
) -> None:
    """It can be launched as it stands, beside the code that its page shows."""
    code = {str(one.file): one.code for one in blocks("python") if one.page == block.page and one.file}
    beside_each_other({**code, "study.toml": block.code})
    status, _, errors = command("check", "study.toml")
    assert status == DONE, errors


@each([block for block in blocks("python") if not block.fragment and block.file is None])
def test_a_script_that_is_shown_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """It ends without an error, where the studies are."""
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, named(block), "exec"), {"__name__": "__main__"})


@pytest.fixture
def search(
    beside_each_other: Callable[[dict[str, str]], None], command: Command, one_thread: None
) -> Callable[[dict[str, str]], dict[str, object]]:
    """Search the study of some files, in this process; return its answer."""

    def run(files: dict[str, str]) -> dict[str, object]:
        beside_each_other(files)
        [study] = (name for name in files if name.endswith(".toml"))
        for words in (("create", study), ("work", study, "--device", "cpu")):
            status, _, errors = command(*words)
            assert status == DONE, errors
        status, out, errors = command("best", tomllib.loads(files[study])["name"], "--json")
        assert status == DONE, errors
        return dict(json.loads(out))

    return run


@each([block for block in blocks("toml") if block.file and block.page != README])
def test_a_study_that_is_shown_with_its_code_is_searched(
    block: Block, search: Callable[[dict[str, str]], dict[str, object]]
) -> None:
    """Both are written as they stand; the search comes to an answer and has flooded."""
    code = next(
        one
        for one in blocks("python")
        if one.page == block.page and Path(str(one.file)).stem == Path(str(block.file)).stem
    )
    answer = search({str(code.file): code.code, str(block.file): block.code})
    assert answer["finished"]
    assert answer["baseline"]
    assert not answer["warnings"]
    assert answer["tried"]


def test_the_loop_of_the_readme_is_searched(
    search: Callable[[dict[str, str]], dict[str, object]],
) -> None:
    """With a model, batches and an evaluation of the reader's, its study file comes to an answer."""
    [loop] = (block for block in blocks("python") if block.page == README and block.fragment)
    [study] = (block for block in blocks("toml") if block.page == README)
    answer = search({str(loop.file): READERS_OWN + loop.code, str(study.file): study.code})
    assert answer["finished"]
    assert answer["baseline"]


def shell_lines() -> list[tuple[str, list[str]]]:
    """Return the lines of the shell that are shown, with where they stand, as words."""
    return [
        (named(block), words)
        for block in blocks("sh")
        for line in textwrap.dedent(block.code).splitlines()
        if (words := shlex.split(line, comments=True))
    ]


def test_command_lines_that_are_shown_can_be_given() -> None:
    """Each has a command that is there, with options and values that it takes; each target of make exists."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    seen = set()
    for where, words in shell_lines():
        while re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]  # noqa: PLW2901 - variables of the line stand before its command
        program, *arguments = words
        seen.add(program)
        if program == "floodsearch":
            assert problem(arguments) is None, where
        elif program == "make":
            assert set(arguments) <= targets, where
        elif program == "docker" and "worker" in arguments:
            assert problem(arguments[arguments.index("worker") + 1 :]) is None, where
        elif program == "python":
            assert arguments[0] == "-m", where
            program = ROOT / arguments[1].replace(".", "/")
            assert (
                program.with_suffix(".py").exists()
                or (program / "__main__.py").exists()
                or (
                    arguments[1] == "pytest"
                    and all((ROOT / one).exists() for one in arguments[2:] if "/" in one)
                )
            ), where
        elif "/" in program and program != ".":
            assert (ROOT / program).exists(), where
        else:
            assert program in {".", "cd", "docker", "export", "pytest"}, f"{where}: {program}"
    assert {"floodsearch", "make", "docker"} <= seen


def test_commands_named_in_sentences_can_be_given() -> None:
    """What stands in the text as a command line or an option is one."""
    foreign = {"--config", "--flood", "--scale", "--rm"}
    commands = re.findall(r"`floodsearch ([a-z][^`]*)`", MANUAL)
    assert len(commands) > len(COMMANDS)
    for line in commands:
        assert problem(shlex.split(line.replace("[", "").replace("]", ""))) is None
    for option in re.findall(r"`(--[a-z-]+)", MANUAL):
        assert option in OPTIONS | foreign | {"--debug"}, option


def test_json_that_is_shown_can_be_read() -> None:
    """A line of JSON in the manual is one."""
    for block in blocks("json"):
        for line in block.code.splitlines():
            json.loads(line)


def test_the_manual_tells_every_field_of_an_answer() -> None:
    """The table of the answer for programs has its fields, each once, and nothing else."""
    section = TEXT[DOCS / "answers.md"].split("## Answers for programs")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, flags=re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(field.name for field in fields(BestLevel))


def test_the_manual_tells_every_exit_status() -> None:
    """The table of exit statuses is that of the command line."""
    section = TEXT[DOCS / "commands.md"].split("## Exit status")[1]
    told = {int(number) for number in re.findall(r"^\| (\d+) \|", section, flags=re.MULTILINE)}
    assert told == {DONE, FAILED, WRONG_USE, HANDED_BACK, INTERRUPTED}


def test_the_answer_that_is_shown_is_one_that_is_printed() -> None:
    """README and manual show the same answer, whose lines begin as those of the report."""
    shown, again = (
        re.search(r"^```\n(two-gaussians.*?)^```$", TEXT[page], flags=re.DOTALL | re.MULTILINE)
        for page in (README, DOCS / "answers.md")
    )
    assert shown is not None
    assert again is not None
    assert shown[1] == again[1]
    labels = re.findall(r"^  (\w[\w ]*?)  +\S", shown[1], flags=re.MULTILINE)
    assert len(labels) > 5
    for label in labels:
        assert label == "val_accuracy" or f'"{label}"' in inspect.getsource(report_text), label


def test_what_runs_before_a_change_lands_mends_nothing() -> None:
    """It checks formatting and style, and fails where `make lint` would mend them."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.split("\ncheck:")[1].split("\n\n")[0]
    assert "ruff format --check ." in recipe
    assert "ruff check ." in recipe
    assert "--fix" not in recipe
    words = (ROOT / ".ci" / "run").read_text(encoding="utf-8").split()
    assert {words[index + 1] for index, word in enumerate(words) if word == "make"} == {"check", "test"}
