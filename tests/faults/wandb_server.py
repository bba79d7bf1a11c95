"""Servers on this machine that treat W&B badly."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def server(manner: str) -> Iterator[str]:
    """The address of a W&B server that is ``silent``, ``late`` (30 s), ``failing`` (500), or ``stuck`` once a run has begun.

    One that is ``stopping`` is stuck, but for saying that somebody pressed the button that stops the run.
    """
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if manner == "stopping" and self.path.endswith("/file_stream"):
                self.answer(200, {"stopped": True})
            elif manner in ("stuck", "stopping") and b"mutation UpsertBucket" in body:
                name = json.loads(body)["variables"]["name"]
                project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
                bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "historyLineCount": 0, "project": project}
                self.answer(200, {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
            elif manner == "failing":
                self.answer(500, {})
            elif not over.wait(30 if manner == "late" else None):
                self.answer(200, {"data": {}})

        do_GET = do_PUT = do_POST

        def answer(self, status: int, value: dict[str, Any]) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

        def handle_error(self, *_: object) -> None:  # who asked has gone
            pass

    with Quiet(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            over.set()
            serving.shutdown()


@contextmanager
def nobody() -> Iterator[str]:
    with socket.socket() as bound:  # and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def address(manner: str) -> Any:
    return nobody() if manner == "unreachable" else server(manner)
