"""The dashboard: it answers whoever asks for it by its name, reads only, and waits for nobody."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest

from floodsearch import queue
from floodsearch.service.dashboard import Door, serve
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study, study_names


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Give the port of a server on a study `tiny`, which ends with the tests, and the storage's URL."""
    from floodsearch.catalog import known
    from floodsearch.study.reader import parse
    from tests.conftest import TINY

    url = f"sqlite:///{tmp_path_factory.mktemp('serve')}/studies.db"
    with open_database(url, create=True) as database:
        queue.fill(put_study(database, parse(TINY, known())))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = threading.Event()
    database = open_database(url, read_only=True)
    arguments = {"names": ["flood.example"], "listening": answers.set}
    threading.Thread(target=serve, args=(database, "127.0.0.1", port), kwargs=arguments, daemon=True).start()
    assert answers.wait(60)
    return port, url


def ask(port, path="/api/studies", method="GET", **headers):
    """Return the status and the content of an answer; a header's `_` stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        method=method,
        headers=named,
        data=b"{}" if method != "GET" else None,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_dashboard_is_read(server):
    """Its pages' data are there: the list of studies, and one with its trials."""
    port, _ = server
    status, found = ask(port)
    assert (status, [one["study_name"] for one in found["study_summaries"]]) == (200, ["tiny"])
    status, found = ask(port, "/api/studies/1")
    assert (status, len(found["trials"])) == (200, 3)


def test_silent_connections_hold_up_nobody(server):
    """Others are answered while connections are open that say nothing, or not all that they began to say."""
    port, _ = server
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
    for one in silent[::2]:
        one.sendall(b"GET /api/studies HTTP/1.1\r\nHo")
    assert ask(port)[0] == 200
    for one in silent:
        one.close()


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:8080",
        "127.0.0.1.evil.test",
        "localhost.evil.test",
        "10.0.0.7",
        "[fe80::1]:8080",
        "a@localhost",
        "flood.example.evil.test",
        "",
        "[::1",
        "localhost:8080@evil.test",
        "evil.test#localhost",
    ],
)
def test_another_host_is_refused_and_nothing_read(server, host):
    """A name that somebody lets point here (DNS rebinding) is no name of this server."""
    status, found = ask(server[0], Host=host)
    assert status == 400
    assert found.keys() == {"reason"}


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:1234",
        "LOCALHOST.",
        "127.0.0.1",
        "127.8.8.8:80",
        "[::1]:80",
        "my.localhost",
        "flood.example",
        "Flood.Example:443",
    ],
)
def test_its_own_names_are_answered(server, host):
    """Those of loopback, whatever the port, as through a tunnel, and those that were given."""
    assert ask(server[0], Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://[::1"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "empty"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Dest": "script"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "iframe"},
    ],
)
def test_pages_of_other_servers_get_nothing(server, headers):
    """What a browser marks as the request of another page is refused."""
    status, found = ask(server[0], **headers)
    assert (status, found.keys()) == (403, {"reason"})


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:8080"},
        {"Origin": "https://flood.example"},
        {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Dest": "empty"},
        {"Sec_Fetch_Site": "none", "Sec_Fetch_Dest": "document"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"},  # a link was followed
    ],
)
def test_its_own_pages_are_answered(server, headers):
    """What a browser marks as the dashboard's own request, or as a link that was followed, is answered."""
    assert ask(server[0], **headers)[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/1"),
        ("POST", "/api/studies"),
        ("POST", "/api/studies/1/rename"),
        ("POST", "/api/trials/1/tell"),
        ("PUT", "/api/studies/1/note"),
        ("OPTIONS", "/api/studies"),
    ],
)
def test_the_dashboard_changes_nothing(server, method, path):
    """What would write is refused with a reason that the dashboard shows."""
    port, url = server
    status, found = ask(port, path, method)
    assert status == 403
    assert "only reads" in found["reason"]
    with open_database(url, read_only=True) as database:
        assert study_names(database) == ["tiny"]


@pytest.mark.parametrize(
    ("listens", "host", "status"),
    [
        ("0.0.0.0", "192.168.1.5:8080", "200 OK"),  # an address cannot be rebound
        ("0.0.0.0", "localhost:8080", "200 OK"),
        ("0.0.0.0", "evil.test", "400 Bad Request"),
        ("::", "[2001:db8::1]:8080", "200 OK"),
        ("box.lan", "box.lan:8080", "200 OK"),
        ("box.lan", "evil.test", "400 Bad Request"),
        ("localhost", "10.0.0.7", "400 Bad Request"),
    ],
)
def test_a_server_of_a_network_answers_to_its_addresses(listens, host, status):
    """Who listens on all addresses is asked by any of them, by loopback, or by its name."""
    said = []

    def application(environ, start):
        start("200 OK", [])
        return []

    door = Door(application, listens, [])
    door({"HTTP_HOST": host, "REQUEST_METHOD": "GET"}, lambda status, headers: said.append(status))
    assert said == [status]
