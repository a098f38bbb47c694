"""A model hub on this machine: the few answers of its interface that a download needs, the unpleasant ones too."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tools.serving import answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serving(models: dict[str, Path], gated: set[str]):
    """The address of a hub that has these models; of those in `gated` it shows the list of files and refuses each."""
    asked: list[tuple[str, str]] = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def refuse(self, status: int, reason: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", reason)
            self.send_header("X-Error-Message", reason)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization", "")))
            path = self.path.split("?")[0]
            name = "/".join((path.removeprefix("/api/models/") if path.startswith("/api") else path[1:]).split("/")[:2])
            if name not in models:
                return self.refuse(401, "RepoNotFound")
            if path.startswith("/api"):
                if "/revision/" in path and not path.endswith(("/main", COMMIT)):
                    return self.refuse(404, "RevisionNotFound")
                if "/tree/" in path:
                    sizes = {file.name: file.stat().st_size for file in sorted(models[name].iterdir())}
                    tree = [{"type": "file", "path": each, "size": size, "oid": each} for each, size in sizes.items()]
                    return self.answer(json.dumps(tree).encode())
                files = [{"rfilename": file.name} for file in sorted(models[name].iterdir())]
                return self.answer(json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode())
            if name in gated:
                return self.refuse(403, "GatedRepo")
            return self.answer((models[name] / path.rsplit("/", 1)[1]).read_bytes())

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    with answering(server):
        yield f"http://127.0.0.1:{server.server_port}", asked
