"""optuna-dashboard on a study storage, for this machine only."""

from __future__ import annotations

from wsgiref.simple_server import make_server

import optuna_dashboard

from floodsearch.storage.database import Database

HOST = "127.0.0.1"
"""The dashboard has no access control and can delete studies, so only this machine may reach it."""


def serve(database: Database, port: int) -> None:
    """Serve the dashboard until interrupted.

    It gets our cached storage: with a URL it would read every trial anew at each refresh.

    Raises:
        OSError: if the port is taken.
    """
    application = optuna_dashboard.wsgi(database.optuna)
    with make_server(HOST, port, application) as server:
        server.serve_forever()
