"""What a storage URL means, and that no message shows a secret of it."""

from __future__ import annotations

import pytest

from floodsearch.artifacts.files import Bucket, check_place, files_at
from floodsearch.cli import main
from floodsearch.errors import StorageError, UsageError
from floodsearch.launchers.local import Launch
from floodsearch.storage.database import open_database
from floodsearch.storage.urls import place_of

SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:p@{SECRET}@host/db",
        f"postgresql://me:p@{SECRET}/x@host/db",
        f"postgresql://me:{SECRET}/x@host/db",
        f"postgresql://me:p@s?{SECRET}@host/db",
        f"postgresql://me:{SECRET}#x@host/db",
        f"postgresql+psycopg://me:p@{SECRET}@host:5432/db?sslmode=require",
        f"postgresql://host/db@{SECRET}",
        f"mysql://me:p@{SECRET}@host/db",
        f"postgresql://me:p@ss:{SECRET}@host/db",
        f"sqlite://me:{SECRET}@host/x.db",
        f"postgresql://me@host/db?password={SECRET}",
    ],
)
def test_where_a_password_ends_is_never_guessed(url):
    """A sign in a password that was not encoded is refused, and no part of the URL is shown."""
    with pytest.raises(StorageError) as caught:
        open_database(url)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_to_encode_is_told():
    """The message says how the signs are written that a password may not hold as they are."""
    with pytest.raises(StorageError, match=r"write %40, %2F"):
        place_of("postgresql://me:p@ss@host/db")


def test_parameters_that_may_be_secrets_are_not_shown():
    """Of parameters that are not known to be harmless only the name stands in messages, reprs and errors."""
    place = place_of(
        f"postgresql://me:{SECRET}1@host/db?sslmode=require&sslpassword={SECRET}2&options=-c%20x%3D{SECRET}3"
        f"&passfile=/{SECRET}4&sslkey=/{SECRET}5&host=a&host=b&unheard={SECRET}6"
    )
    assert place.name == (
        "postgresql+psycopg://me:***@host/db?sslmode=require&sslpassword=***&options=***&passfile=***"
        "&sslkey=***&host=a&host=b&unheard=***"
    )
    assert SECRET not in repr(place)
    assert SECRET not in place.hushed(f"invalid {SECRET}6 of {SECRET}1 in -c x={SECRET}3")


def test_an_open_database_shows_no_secret(tmp_path):
    """The repr of a database, as in a debugger or a traceback with values, holds its name only."""
    launched = Launch(None, f"postgresql://me:{SECRET}@host/db", None, checkpoints=f"ftp://me:{SECRET}@host")
    assert SECRET not in repr(launched)
    with open_database(f"sqlite:///{tmp_path}/x.db", create=True) as database:
        assert repr(database) == f"Database(name='sqlite:///{tmp_path}/x.db')"


NAMES = [
    "with space.db",
    "per%20cent.db",
    "what?.db",
    "sharp#1.db",
    "all %41?b=c#d/x.db",
    "{braces}.db",
    "ü.db",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_the_file_of_that_name(tmp_path, monkeypatch, name):
    """Whatever signs a path holds: the file is there, relative or absolute, and messages show the path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    for url in (f"sqlite:///{name}", f"sqlite:///{tmp_path}/{name}"):
        with open_database(url, create=True) as database:
            assert database.name == url
            database.optuna.get_all_studies()
    assert (tmp_path / name).stat().st_size > 0
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert made == [tmp_path / name]


@pytest.mark.parametrize("folder", ["what?", "per%20cent", "a?b=c&d", "sharp#1"])
def test_a_new_file_lies_in_the_folder_that_is_named(tmp_path, folder):
    """A folder's name is taken as it is."""
    (tmp_path / folder).mkdir()
    open_database(f"sqlite:///{tmp_path}/{folder}/new.db", create=True).close()
    assert [path.name for path in (tmp_path / folder).iterdir()] == ["new.db"]


def test_a_path_is_decoded_where_it_leads_nowhere_else(tmp_path):
    """As plain SQLAlchemy does it, but only if there is nothing of the written name."""
    (tmp_path / "with space").mkdir()
    open_database(f"sqlite:///{tmp_path}/with%20space/new.db", create=True).close()
    assert (tmp_path / "with space" / "new.db").exists()
    (tmp_path / "with%20space").mkdir()
    assert (
        place_of(f"sqlite:///{tmp_path}/with%20space/other.db").path == tmp_path / "with%20space" / "other.db"
    )


def test_options_of_sqlalchemy_are_no_file(tmp_path):
    """`?timeout=3` after a path would silently be a part of the file's name."""
    with pytest.raises(StorageError, match=r"has an option after \?.* write sqlite:///.*/x\.db$"):
        open_database(f"sqlite:///{tmp_path}/x.db?timeout=3", create=True)
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """As in a shell, which does not expand it within a word; a home that is not known is refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with open_database("sqlite:///~/x.db", create=True) as database:
        assert database.name == f"sqlite:///{tmp_path}/x.db"
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]
    with pytest.raises(StorageError, match="home folder that is not known"):
        open_database("sqlite:///~nobody-of-this-name/x.db", create=True)


@pytest.mark.parametrize(
    "name", ["FLOODSEARCH_STORAGE", "FLOODSEARCH_STORAGE_FILE", "FLOODSEARCH_CHECKPOINTS"]
)
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_is_an_error(tmp_path, monkeypatch, capsys, name, value):
    """A variable of ours that is set to nothing never means the default, such as a local file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    assert ended(monkeypatch, "status") == 2
    assert capsys.readouterr().err == f"floodsearch: {name} is empty; give it a value, or unset it\n"


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_with_the_storage_is_an_error(tmp_path, monkeypatch, capsys, content):
    """A secret that was not filled in is said, with the file's name."""
    (tmp_path / "url").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOODSEARCH_STORAGE_FILE", "url")
    assert ended(monkeypatch, "status") == 2
    assert "FLOODSEARCH_STORAGE_FILE is url, which is empty" in capsys.readouterr().err


def ended(monkeypatch, *arguments):
    """Run a command here and return its exit status."""
    monkeypatch.setattr("sys.argv", ["floodsearch", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.mark.parametrize(
    "url", [f"s3://KEY:{SECRET}@bucket/x", f"s3://KEY:a/{SECRET}@bucket", f"ftp://me:{SECRET}@127.0.0.1:1/x"]
)
def test_a_secret_in_the_url_of_checkpoints_is_not_shown(url):
    """Neither in what is refused nor in what a library says."""
    with pytest.raises((UsageError, OSError)) as caught:
        check_place(url)
    assert SECRET not in str(caught.value)
    assert "***@" in str(caught.value)


def test_a_bucket_shows_its_url_without_secrets():
    """What is logged of checkpoints names the place, not the key."""
    assert str(Bucket("memory://me:hunter2@host/x?token=hunter2")) == "memory://***@host/x"


def test_no_place_for_checkpoints_is_an_error():
    """An empty place would be the current folder."""
    with pytest.raises(UsageError, match="is empty"):
        files_at("")
