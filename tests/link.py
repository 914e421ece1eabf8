"""A link to a server that can be cut or hang: bytes pass through a process between both ends."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator


class Link:
    """Forwards a port of this machine to another one, until it is told not to.

    Args:
        port: of the server behind it.

    Attributes:
        port: to connect to.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open = threading.Event()
        self._open.set()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                near, _ = self._server.accept()
                threading.Thread(target=self._forward, args=(near,), daemon=True).start()

    def _forward(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._behind))
        except OSError:
            near.close()
            return
        with self._lock:
            self._pairs.add((near, far))
        other = {near: far, far: near}
        with selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            for one in other:
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    one = key.fileobj
                    assert isinstance(one, socket.socket)
                    data = one.recv(65536)
                    self._open.wait()
                    if not data:
                        raise ConnectionError
                    other[one].sendall(data)
        with self._lock:
            self._pairs.discard((near, far))
        near.close()
        far.close()

    def cut(self) -> None:
        """End all connections, in mid-sentence or not; new ones are let through."""
        with self._lock:
            for pair in self._pairs:
                for one in pair:
                    with contextlib.suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Let nothing through meanwhile, and say nothing: what was sent arrives afterwards."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def close(self) -> None:
        """End all."""
        self._open.set()
        self._server.close()
        self.cut()
