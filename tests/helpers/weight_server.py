"""A web server of files, with the troubles that real ones have."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers from `server.files`."""

    protocol_version = "HTTP/1.1"
    server: WeightServer

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range", "")
        server.requests.append((self.path, asked))
        if server.moved_to and not self.path.startswith("/moved/"):
            return self.reply(302, b"", {"Location": server.moved_to})
        content = server.files.get(self.path.partition("?")[0])
        if content is None:
            return self.reply(404, b"not here", {})
        etag = f'"{hashlib.sha256(content).hexdigest()[:8]}"' if server.etags else ""
        start = re.fullmatch(r"bytes=(\d+)-", asked) if server.ranges else None
        condition = self.headers.get("If-Range", etag) if server.knows_if_range else etag
        if start is None or condition != etag:
            return self.reply(200, content, {"ETag": etag})
        if int(start[1]) >= len(content):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        rest = content[int(start[1]) :]
        place = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
        return self.reply(206, rest, {"ETag": etag, "Content-Range": place})

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        server = self.server
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        length = server.claims or len(body)
        for name, value in {**headers, "Content-Type": server.kind, "Content-Length": str(length)}.items():
            if value and not (name == "Content-Length" and server.hides_length):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = server.cuts.pop(0) if server.cuts and status in (200, 206) else len(body)
        for begin in range(0, len(body[:cut]), 1 << 14):
            self.wfile.write(body[begin : min(begin + (1 << 14), cut)])
            time.sleep(server.pause_s)
        while server.endless and not server.stopping:
            self.wfile.write(body[: 1 << 14])
            time.sleep(server.pause_s)

    def log_message(self, *arguments: object) -> None:
        pass


class WeightServer(http.server.ThreadingHTTPServer):
    """Files by path.

    Attributes:
        requests: (path, Range header) of every request.
        cuts: bytes of the body after which the next answers break off; a whole answer when none is left.
        claims: a Content-Length that is not the body's.
        endless: the body is repeated for ever.
        moved_to: where all requests are sent.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.cuts: list[int] = []
        self.ranges = self.etags = self.knows_if_range = True
        self.hides_length = self.endless = self.stopping = False
        self.moved_to = ""
        self.claims, self.pause_s, self.kind = 0, 0.0, "application/octet-stream"
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has seen enough is no trouble."""

    def host(self, hub_id: str, files: dict[str, bytes]) -> None:
        """Serve files as the Hugging Face hub serves those of a repository."""
        self.files |= {f"/{hub_id}/resolve/main/{name}": content for name, content in files.items()}

    def ranges_of(self, name: str) -> list[str]:
        """The Range headers of the requests for a file."""
        return [asked for path, asked in self.requests if path.endswith(f"/{name}")]


@contextmanager
def weight_server() -> Iterator[WeightServer]:
    """A server that runs inside the block."""
    server = WeightServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stopping = True
        server.shutdown()
        thread.join()
        server.server_close()
