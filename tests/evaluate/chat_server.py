"""A small server that speaks as OpenAI's chat completions do, on a free port of this machine, and misbehaves as told.

    with ChatServer(lambda body: "[['B']]") as server: Endpoint(server.url, "tiny")

A reply is a str, or a `Fault`: another status, raw bytes, or silence.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What comes instead of a reply.

    `silent` never answers, until the server ends; `message` is what the server says of an error.
    """

    status: int = 200
    raw: bytes | None = None
    message: str = ""
    silent: bool = False
    location: str = ""


class ChatServer:
    """Keeps what it was asked: `bodies` and `headers` in order."""

    def __init__(self, reply: Callable[[Body], str | Fault]) -> None:
        self.reply = reply
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.ended = threading.Event()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                chat.bodies.append(body)
                chat.headers.append({**dict(self.headers.items()), "path": self.path})
                said = chat.reply(body)
                if isinstance(said, str):
                    text = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]})
                    said = Fault(raw=text.encode())
                if said.silent:
                    chat.ended.wait()
                    return
                raw = said.raw if said.raw is not None else json.dumps({"error": {"message": said.message}}).encode()
                self.send_response(said.status)
                if said.location:
                    self.send_header("Location", said.location)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def text_of(body: Body) -> str:
    """The words of the last turn."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


def pictures_of(body: Body) -> list[str]:
    """The addresses of the pictures of the last turn."""
    content = body["messages"][-1]["content"]
    parts = [] if isinstance(content, str) else content
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
