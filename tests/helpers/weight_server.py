"""A web server of files, as the Hugging Face hub serves them, with connections that break."""

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
        if self.command == "GET":
            server.requests.append((self.path, asked))
        content = server.files.get(self.path.partition("?")[0])
        if content is None:
            return self.reply(404, b"not here", {"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        start = re.fullmatch(r"bytes=(\d+)-\d*", asked)
        if start is None:
            return self.reply(200, content, {"ETag": etag, "Accept-Ranges": "bytes"})
        place = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
        return self.reply(206, content[int(start[1]) :], {"ETag": etag, "Content-Range": place})

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        fixed = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), "Connection": "close"}
        self.send_response(status)
        for name, value in {**headers, **fixed, "Content-Type": "application/octet-stream"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cuts.pop(0) if self.server.cuts and status in (200, 206) else len(body)
        for begin in range(0, cut, 1 << 14):
            self.wfile.write(body[begin : min(begin + (1 << 14), cut)])
            time.sleep(self.server.pause_s)

    def log_message(self, *arguments: object) -> None:
        pass


class WeightServer(http.server.ThreadingHTTPServer):
    """Files by path.

    Attributes:
        requests: (path, Range header) of every GET.
        cuts: bytes of the body after which the next answers break off; a whole answer when none is left.
        pause_s: seconds after every 16 KiB.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.cuts: list[int] = []
        self.pause_s = 0.0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone away is no trouble."""

    def host(self, hub_id: str, files: dict[str, bytes]) -> None:
        """Serve files as the Hugging Face hub serves those of a repository."""
        self.files |= {f"/{hub_id}/resolve/main/{name}": content for name, content in files.items()}
        self.files |= {f"/{hub_id}/resolve/{COMMIT}/{name}": content for name, content in files.items()}

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
        server.shutdown()
        thread.join()
        server.server_close()
