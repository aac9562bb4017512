"""As much of W&B's server as a sweep needs, on this machine: what it is sent is recorded."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

SWEEP_ID = "abcd1234"


class SweepServer:
    """Takes a sweep and gives its agents the commands of a list, one whenever nothing runs; in the end `exit`.

    Attributes:
        sweep: the configuration that it was sent.
        commands: of the agents; a test fills it.
        done: how many were given.
    """

    def __init__(self) -> None:
        self.sweep: dict[str, Any] = {}
        self.commands: list[dict[str, Any]] = []
        self.done = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                answer = owner._answer(json.loads(body)) if self.path == "/graphql" else {}
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> SweepServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        if "upsertSweep" in query:
            self.sweep = yaml.safe_load(variables["config"])
            project = {"id": "p", "name": variables["projectName"], "entity": {"id": "e", "name": "lab"}}
            return {"data": {"upsertSweep": {"sweep": {"name": SWEEP_ID, "project": project}}}}
        if "createAgent" in query:
            return {"data": {"createAgent": {"agent": {"id": "agent"}}}}
        if "agentHeartbeat" in query:
            commands = json.dumps([] if json.loads(variables["runState"]) else [self._next()])
            return {"data": {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": commands}}}
        if "viewer" in query:
            return {
                "data": {"viewer": {"id": "u", "entity": "lab", "username": "u", "flags": "{}", "teams": {"edges": []}}}
            }
        config = yaml.safe_dump(self.sweep)
        sweep = {"id": "s", "name": SWEEP_ID, "config": config, "state": "RUNNING", "runs": {"edges": []}}
        return {"data": {"project": {"sweep": sweep}}}

    def _next(self) -> dict[str, Any]:
        if self.done == len(self.commands):
            return {"type": "exit"}
        self.done += 1
        return self.commands[self.done - 1]
