"""Files in a folder and in a bucket: the same promises, and one line where a place cannot be used."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from floodsearch import queue
from floodsearch.artifacts import checkpoint as checkpoint_module
from floodsearch.artifacts.checkpoint import Checkpoint
from floodsearch.artifacts.files import HEAD, Files, check_place, files_at
from floodsearch.artifacts.names import remove_files
from floodsearch.errors import UsageError
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

ROOM = 10**6

# Of moto's server and of the client's clock.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="session")  # fsspec keeps a client for the first server of a process
def server() -> Iterator[str]:
    """Serve an S3 of this machine, in memory; give its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Make a bucket; give a URL in it."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import fsspec

    name = f"bucket-{abs(hash(tmp_path))}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}/deep/place"


@pytest.fixture(params=["folder", "bucket"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """Give files in an empty place of each kind."""
    where = tmp_path / "place" if request.param == "folder" else request.getfixturevalue("bucket")
    return files_at(where).within("study").within("1234")


def test_what_is_written_is_read(files: Files) -> None:
    """Whole, in parts, from the start; in the place of what was there."""
    files.write("a.pt", b"one", memoryview(b"two"), room=ROOM)
    assert files.read("a.pt") == b"onetwo"
    files.write("a.pt", b"x" * 1000, room=ROOM)
    assert files.head("a.pt") == b"x" * HEAD
    assert files.names("*") == ["a.pt"]


def test_the_one_before_is_kept(files: Files) -> None:
    for content in (b"1", b"2", b"3"):
        files.write("a.pt", content, room=ROOM, before="a.before")
    assert (files.read("a.pt"), files.read("a.before")) == (b"3", b"2")
    assert files.names("*") == ["a.before", "a.pt"]


def test_what_is_not_there_is_said_so(files: Files) -> None:
    """Reading raises; to list or to remove nothing is nothing."""
    for read in (files.read, files.head):
        with pytest.raises(FileNotFoundError):
            read("a.pt")
    assert files.names("*") == files.entries() == []
    files.remove("a.pt")
    assert remove_files(files) == []


def test_names_are_those_of_a_pattern_and_of_no_other_folder(files: Files) -> None:
    for name in ("ticket-1-seed-0.pt", "ticket-1-seed-1.pt.before", "ticket-11-seed-0.pt", "trunk-1.pt"):
        files.write(name, b"", room=ROOM)
    files.within("weights").write("ticket-1-seed-0.pt", b"", room=ROOM)
    assert files.names("ticket-1-*") == ["ticket-1-seed-0.pt", "ticket-1-seed-1.pt.before"]
    files.remove(*files.names("ticket-1-*"))
    assert files.names("*") == ["ticket-11-seed-0.pt", "trunk-1.pt"]
    assert files.within("weights").names("*") == ["ticket-1-seed-0.pt"]
    assert files.entries() == ["ticket-11-seed-0.pt", "trunk-1.pt", "weights"]


def test_room_is_a_bound(files: Files) -> None:
    """What would not fit is not written; what is replaced makes room, what is kept before does not."""
    files.write("a.pt", b"x" * 60, room=100)
    with pytest.raises(OSError, match="would hold more than 100 bytes"):
        files.write("b.pt", b"x" * 60, room=100)
    files.write("a.pt", b"x" * 90, room=100)
    with pytest.raises(OSError, match="would hold more than 100 bytes"):
        files.write("a.pt", b"x" * 20, room=100, before="a.before")
    assert files.names("*") == ["a.pt"]
    assert files.read("a.pt") == b"x" * 90


def test_a_checkpoint_is_the_same_in_both(files: Files) -> None:
    """The last one, the one before where that is damaged, the epoch of the head, and nothing when removed."""
    one = Checkpoint(files, "a.pt", {"level": 0.1})
    assert (one.load(), one.epoch()) == (None, 0)
    for epoch in (1, 2):
        one.save({"epoch": epoch, "weight": torch.full((3,), float(epoch))})
    assert one.epoch() == 2
    whole = files.read("a.pt")
    files.write("a.pt", whole[:-20], room=ROOM)
    found = one.load()
    assert found is not None
    assert (found["epoch"], found["weight"].tolist()) == (1, [1.0] * 3)
    one.remove()
    assert one.load() is None
    assert files.names("*") == []


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_another_machine_goes_on_from_a_bucket(database, make_spec, bucket, monkeypatch) -> None:
    """With a bucket for checkpoints nothing is trained twice, and it is empty when the study is finished."""
    spec = make_spec(levels={"high": 4.0}, training={"epochs": 12, "keep": "last"})
    study = put_study(database, spec)
    queue.fill(study)
    leave = LeaveRequest()
    plain, steps = queue.record, []

    def record(entries):
        steps.append(entries)
        if len(steps) == 2:
            leave.ask("the machine goes")
        return plain(entries)

    monkeypatch.setattr(queue, "record", record)
    monkeypatch.setattr("floodsearch.worker.recorder.FLUSH_SECONDS", 0.0)
    assert (
        work(study, WorkerSettings(device="cpu", threads=1, checkpoints=bucket), leave) == "the machine goes"
    )
    files = files_at(bucket).within(study.folder)
    assert files.names("*")
    assert work(study, WorkerSettings(device="cpu", threads=1, checkpoints=bucket), LeaveRequest())
    assert {trial.state for trial in read_trials(study)} == {"complete"}
    trained = sum(one.epochs_run for one in tables.read_workers(database, study.uuid))
    assert trained == len(spec.training.seeds) * 12 * len(read_trials(study))
    assert files.names("*") == []
    assert len(files.within("weights").names("*")) == len(spec.training.seeds) * len(read_trials(study))


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_a_bucket_that_goes_away_ends_no_training(database, make_spec, bucket, monkeypatch, caplog) -> None:
    """Checkpoints only save time: where they cannot be written there are warnings."""
    monkeypatch.setattr(checkpoint_module, "SECONDS", 0.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    study = put_study(database, make_spec())
    queue.fill(study)
    place = bucket.replace("bucket-", "gone-")
    work(study, WorkerSettings(device="cpu", threads=1, checkpoints=place), LeaveRequest())
    assert {trial.state for trial in read_trials(study)} == {"complete"}
    assert "no checkpoint: " in caplog.text


def test_a_place_that_cannot_be_used_is_refused(tmp_path: Path, bucket: str, monkeypatch) -> None:
    """One line that names it and says why."""
    check_place(tmp_path / "new" / "folder")
    check_place(bucket)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file cannot be used for checkpoints: .* is no folder"):
        check_place(tmp_path / "file")
    with pytest.raises(UsageError, match=r"s3://gone/x cannot be used for checkpoints: .*bucket"):
        check_place("s3://gone/x")
    with pytest.raises(UsageError, match=r"nowhere://x cannot be used: .*nowhere"):
        check_place("nowhere://x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    with pytest.raises(UsageError, match=r"s3://a/b cannot be used: .*pip install 'floodsearch\[s3\]'"):
        check_place("s3://a/b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="may not be written"):
        check_place(tmp_path / "mine" / "deep")
