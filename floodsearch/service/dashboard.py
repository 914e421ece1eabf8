"""optuna-dashboard on a study storage, for reading, and for nobody but those who know its name."""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any
from urllib.parse import urlsplit

import optuna_dashboard
import waitress

from floodsearch.storage.database import Database

THREADS = 8
MOST_CONNECTIONS = 5000
SILENT_SECONDS = 60
"""After which a connection that says nothing is closed."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def serve(
    database: Database, host: str, port: int, *, names: Collection[str], listening: Callable[[], None]
) -> None:
    """Serve the dashboard until interrupted.

    It gets our cached storage: with a URL it would read every trial anew at each refresh.

    Args:
        database: that holds the studies, opened for reading.
        host: address to listen on; whoever reaches it can read all studies.
        port: likewise.
        names: by which it may be asked for beside its own, as behind a reverse proxy.
        listening: called when it answers.

    Raises:
        OSError: if the port is taken.
    """
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a moment with many requests is no warning
    server = waitress.create_server(
        Door(optuna_dashboard.wsgi(database.optuna), host, names),
        host=host,
        port=port,
        threads=THREADS,
        connection_limit=MOST_CONNECTIONS,
        channel_timeout=SILENT_SECONDS,
        asyncore_use_poll=True,  # select knows 1,024 connections at most
        ident=None,
    )
    listening()
    server.run()


class Door:
    """A WSGI application that lets through what reads, and what asks for this server by a name of its own.

    A page of another server can let its own name lead here (DNS rebinding): the browser then takes us for
    that server and hands it all we answer, but it still sends that name as Host.

    Args:
        application: behind it.
        host: on which the server listens, an address or a name.
        names: further names.
    """

    def __init__(self, application: Application, host: str, names: Collection[str]) -> None:
        self.application = application
        self.names = {name.lower().rstrip(".") for name in (host, *names)}
        address = _address(host)
        self.loopback = host == "localhost" or (address is not None and address.is_loopback)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, or refuse it before anything is read."""
        if (refusal := self._refusal(environ)) is None:
            return self.application(environ, start)
        status, reason = refusal
        body = json.dumps({"reason": reason}).encode()  # which the dashboard shows
        start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _refusal(self, environ: dict[str, Any]) -> tuple[str, str] | None:
        """Return the status and the reason with which a request is refused, or None."""
        host = environ.get("HTTP_HOST", "")
        if not self._is_ours(host):
            return "400 Bad Request", f"{host!r} is no name of this server; start it with --allow-host NAME"
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and not self._is_ours(origin.partition("://")[2]):
            return "403 Forbidden", "a page of another server may not ask"
        site, to = environ.get("HTTP_SEC_FETCH_SITE", "none"), environ.get("HTTP_SEC_FETCH_DEST")
        # A link to the dashboard may be followed.
        if site not in ("same-origin", "none") and to != "document":
            return "403 Forbidden", "a page of another server may not ask"
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "403 Forbidden", "this dashboard only reads; change studies with floodsearch"
        return None

    def _is_ours(self, netloc: str) -> bool:
        """Return whether a host, with or without a port, is this server: addresses cannot be rebound."""
        try:
            name = urlsplit(f"//{netloc}").hostname
        except ValueError:
            return False
        if not name or "@" in netloc:
            return False
        name = name.rstrip(".")
        if (address := _address(name)) is not None:
            return address.is_loopback or not self.loopback
        return name in self.names or name == "localhost" or name.endswith(".localhost")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
