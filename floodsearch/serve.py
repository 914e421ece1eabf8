"""optuna-dashboard on a study storage."""

from __future__ import annotations

from wsgiref.simple_server import make_server

import optuna_dashboard

from floodsearch.storage.database import Database


def serve(database: Database, host: str, port: int) -> None:
    """Serve the dashboard until interrupted.

    It gets our cached storage: with a URL it would read every trial anew at each refresh.

    Args:
        database: that holds the studies.
        host: address to listen on; whoever reaches it can delete studies.
        port: likewise.

    Raises:
        OSError: if the port is taken.
    """
    application = optuna_dashboard.wsgi(database.optuna)
    with make_server(host, port, application) as server:
        server.serve_forever()
