"""Servers on loopback that send whatever bytes a test wants, at any pace."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Script = Callable[[socket.socket, bytes], None]
"""Gets a connection and the request's head, and answers as it likes."""


class Hostile:
    """A server that plays a script on each connection.

    Attributes:
        requests: the heads of the requests that came.
        host: its address and port.
    """

    def __init__(self, script: Script) -> None:
        self.requests: list[bytes] = []
        self.stopped = threading.Event()
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def url(self) -> str:
        """Its address as a URL."""
        return f"http://{self.host}"

    def serve(self) -> None:
        """Accept connections until the listener is closed, each in a thread of its own."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._play, args=(connection,), daemon=True).start()

    def stop(self) -> None:
        """End all scripts."""
        self.stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _play(self, connection: socket.socket) -> None:
        connection.settimeout(30)
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (part := connection.recv(65536)):
                head += part
            self.requests.append(head)
            self._script(connection, head)


@contextmanager
def hostile(script: Script) -> Iterator[Hostile]:
    """Run a server in the background."""
    server = Hostile(script)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def sends(*pieces: bytes) -> Script:
    """An answer in pieces, and then the end of the connection."""

    def script(connection: socket.socket, _: bytes) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return script


def for_ever(start: bytes, piece: bytes, *, pause: float = 0) -> Script:
    """A beginning, and the same piece again and again until the client leaves."""

    def script(connection: socket.socket, _: bytes) -> None:
        connection.sendall(start)
        waiting = threading.Event()
        while True:
            connection.sendall(piece)
            waiting.wait(pause)

    return script


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """The bytes of a well-formed answer."""
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body
