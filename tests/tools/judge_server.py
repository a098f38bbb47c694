"""A judge over HTTP that speaks the protocol of chat completions, and fails where it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tools.serving import answering

# What can go wrong with a request, beside a status code such as "503".
FAULTS = ("time-out", "malformed", "prose", "half", "not json", "empty")


class JudgeServer:
    """A server of its own, on a port of this machine, inside a `with` block.

    Parameters
    ----------
    judge : callable
        From question, answer A and answer B to "A", "B" or "Tie".
    faults : mapping
        By a request's number, from 0: one of FAULTS or a status code. Number -1: every request.
    hold : int
        The request that waits: `arrived` is set when it is here, and it goes on when `release` is set.
    """

    def __init__(
        self, judge: Callable[[str, str, str], str], faults: Mapping[int, str] | None = None, hold: int = -1
    ) -> None:
        self.judge, self.faults, self.hold = judge, dict(faults or {}), hold
        self.seen: list[str] = []  # the messages of every request, in the order of arrival
        self.keys: list[str | None] = []
        self.arrived, self.release, self.ended = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._open = ExitStack()
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> JudgeServer:
        self._open.enter_context(answering(self._server))
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.release.set()
        self._open.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None:
                pass

            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.seen)
                    outer.seen.append(sent["messages"][1]["content"])
                    outer.keys.append(self.headers.get("Authorization"))
                if number == outer.hold:
                    outer.arrived.set()
                    outer.release.wait()
                try:
                    self._reply(sent, outer.faults.get(number, outer.faults.get(-1, "")))
                except OSError:  # the caller was killed, or has waited long enough
                    pass

            def _reply(self, sent: dict, fault: str) -> None:
                if fault == "time-out":
                    outer.ended.wait()
                    return
                if fault.isdigit():
                    self._send(int(fault), json.dumps({"error": {"message": f"a planted {fault}"}}).encode())
                    return
                asked = json.loads(sent["messages"][1]["content"])
                winner = outer.judge(asked["question"], asked["answer A"], asked["answer B"])
                text = json.dumps({"winner": winner})
                text = {"malformed": text[:-3], "prose": f"I prefer {winner}.", "empty": ""}.get(fault, text)
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                head = {"id": "1", "object": "chat.completion", "created": 0, "model": sent["model"]}
                body = json.dumps(head | {"choices": [choice]}).encode()
                self._send(200, b"{half an object" if fault == "not json" else body, cut=fault == "half")

            def _send(self, status: int, body: bytes, cut: bool = False) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Retry-After-Ms", "1")  # or the client waits half a second
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)
                self.close_connection = cut

        return Handler
