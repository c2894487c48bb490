"""A registry that misbehaves by the requested path; runs in a pod on the node's network, with Python alone.

denied/…              403 for everything
unauthorized/…        401 for everything
broken/…              500 for everything
slow/NAME             NAME of the real registry, a tag after ten seconds
late/ANYTHING/NAME    503 in the first eight seconds after the first request for this ANYTHING, then NAME
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import Request, urlopen

UPSTREAM = os.environ.get("UPSTREAM", "localhost:5000")
SLOW_SECONDS, LATE_SECONDS = 10.0, 8.0
TLS_HANDSHAKE = b"\x16"
REFUSALS = {"denied": (403, "DENIED"), "unauthorized": (401, "UNAUTHORIZED"), "broken": (500, "UNKNOWN")}
first_request: dict[str, float] = {}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        """Answer a TLS handshake with plain HTTP: container runtimes try TLS first, and then go on without it."""
        if self.rfile.peek(1)[:1] == TLS_HANDSHAKE:  # type: ignore[attr-defined]
            self.wfile.write(b"HTTP/1.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            self.close_connection = True
            return
        super().handle_one_request()

    def do_GET(self) -> None:
        """Answer by the path."""
        _, _, behaviour, *rest = [*self.path.split("/"), ""]
        rest = rest[:-1]
        if behaviour in REFUSALS:
            self._refuse(*REFUSALS[behaviour])
        elif behaviour == "slow":
            if "manifests" in rest and not rest[-1].startswith("sha256:"):
                time.sleep(SLOW_SECONDS)
            self._pass_on("/".join(rest))
        elif behaviour == "late":
            if time.monotonic() - first_request.setdefault(rest[0], time.monotonic()) < LATE_SECONDS:
                self._refuse(503, "UNAVAILABLE")
            else:
                self._pass_on("/".join(rest[1:]))
        else:
            self._answer(200, {}, b"{}")  # /v2/ itself

    do_HEAD = do_GET  # noqa: N815  the library's name

    def _refuse(self, status: int, code: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": "requested access to the resource is refused"}]})
        challenge = {"WWW-Authenticate": 'Basic realm="registry"'} if code == "UNAUTHORIZED" else {}
        self._answer(status, {"Content-Type": "application/json", **challenge}, body.encode())

    def _pass_on(self, path: str) -> None:
        request = Request(
            f"http://{UPSTREAM}/v2/{path}", method=self.command, headers={"Accept": self.headers.get("Accept", "*/*")}
        )
        try:
            with urlopen(request) as response:  # noqa: S310  as above
                kept = {k: v for k, v in response.headers.items() if k in ("Content-Type", "Docker-Content-Digest")}
                length = response.headers.get("Content-Length", "0")
                self._answer(response.status, kept, response.read(), length)
        except HTTPError as error:
            self._answer(error.code, {}, error.read())

    def _answer(self, status: int, headers: dict[str, str], body: bytes, length: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()  # noqa: S104  the kubelet connects here
