"""As much of the hub's interface as loading a model or a dataset needs: files of one commit of one
repository."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, send_body: bool) -> None:
        repository, _, rest = self.path.lstrip("/").split("?")[0].partition("/resolve/")
        server = self.server
        if server.kind == "datasets":
            repository = repository.removeprefix("datasets/")
        if self.path.startswith(f"/api/{server.kind}/{server.name}"):
            files = [{"type": "file", "path": p.relative_to(server.folder).as_posix(),
                      "oid": "0" * 40, "size": p.stat().st_size}
                     for p in sorted(server.folder.rglob("*")) if p.is_file()]  # fmt: skip
            facts = {"id": server.name, "sha": server.commit,
                     "siblings": [{"rfilename": f["path"]} for f in files]}  # fmt: skip
            body = json.dumps(files if "/tree/" in self.path else facts).encode()
            return self.reply(200, body, send_body, {"Content-Type": "application/json"})
        revision, _, name = rest.partition("/")
        if repository != server.name:
            return self.reply(404, b"", send_body, {"X-Error-Code": "RepoNotFound"})
        if server.gated:
            return self.reply(403, b"", send_body, {"X-Error-Code": "GatedRepo"})
        if revision not in ("main", server.commit):
            return self.reply(404, b"", send_body, {"X-Error-Code": "RevisionNotFound"})
        if not (server.folder / name).is_file():
            entry = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": server.commit}
            return self.reply(404, b"", send_body, entry)
        server.served.append(name)
        body = (server.folder / name).read_bytes()
        etag = hashlib.sha1(body).hexdigest()
        self.reply(200, body, send_body, {"ETag": f'"{etag}"', "X-Repo-Commit": server.commit})

    def reply(self, status: int, body: bytes, send_body: bool, headers: dict) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def do_GET(self):
        self.answer(send_body=True)

    def do_HEAD(self):
        self.answer(send_body=False)

    def log_message(self, *args):
        pass


class HubServer(ThreadingHTTPServer):
    """Serves `folder` as the model (or another `kind`) `name` at `commit`; `served` lists the files
    asked for; to a gated one, access is refused."""

    daemon_threads = True

    def __init__(self, name: str, folder: Path, commit: str, kind: str = "models"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.kind, self.gated = kind, False
        self.name, self.folder, self.commit = name, folder, commit
        self.served: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def go_away(self) -> None:
        self.shutdown()
        self.server_close()
