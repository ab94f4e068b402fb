"""As much of the hub's interface as loading a model or a dataset needs: files of one commit of one
repository; and what pushing needs."""

import base64
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


class PushHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.server.gone.is_set():  # asked over a connection from before
            self.close_connection = True
            return
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            return self.answer(401, {"error": "Invalid username or password."})
        name, _, place = self.path.split("?")[0].removeprefix("/api/").partition("/")
        if name == "repos":
            self.create(json.loads(body))
        elif name == "validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**thing, "actions": {"upload": {"href": f"{self.server.url}/put/{thing['oid']}"}}}
                for thing in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        else:
            owner, repository, action, revision = place.split("/")
            self.act(f"{owner}/{repository}", action, revision, body)

    def create(self, wanted: dict) -> None:
        owner, name = wanted["organization"] or "me", wanted["name"]
        if owner != "me":
            return self.answer(
                403, {"error": f"You don't have the rights to create {owner}/{name}"}
            )
        repository = f"{owner}/{name}"
        if repository in self.server.files:
            return self.answer(
                409, {"error": "it exists", "url": f"{self.server.url}/{repository}"}
            )
        self.server.files[repository] = {"main": {}}
        self.server.private[repository] = wanted.get("visibility") == "private"
        self.answer(200, {"url": f"{self.server.url}/{repository}"})

    def act(self, repository: str, action: str, revision: str, body: bytes) -> None:
        branches = self.server.files[repository]
        if action == "branch":
            branches.setdefault(revision, {})
            return self.answer(200, {})
        if action == "preupload":
            files = [
                {"path": f["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".pt", ".png")) else "regular"}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            return self.answer(200, {"files": files})
        message = ""
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                branches[revision][value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                branches[revision][value["path"]] = self.server.objects[value["oid"]]
        self.server.commits.append((revision, message))
        oid = hashlib.sha1(body).hexdigest()
        url = f"{self.server.url}/{repository}/commit/{oid}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})
        if message == self.server.last:
            self.server.go_away()

    def do_PUT(self):
        n_bytes = self.headers["Content-Length"]
        body = self.rfile.read(int(n_bytes)) if n_bytes else self.read_chunks()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.answer(200, {})

    def do_GET(self):
        self.answer(404, {"error": "Repository not found"})

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class PushServer(ThreadingHTTPServer):
    """As much of the hub as pushing needs: repositories of the user `me`, who has `token`.

    files: repository → branch → path → content. commits: (branch, message), in order. After the
    commit whose message is `last`, it is gone.
    """

    daemon_threads = True

    def __init__(self, last: str | None = None):
        super().__init__(("127.0.0.1", 0), PushHandler)
        self.token, self.last, self.gone = "hf_test", last, threading.Event()
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that takes it for the hub; large files go by LFS, which is HTTP."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1"}  # fmt: skip

    def go_away(self) -> None:
        self.gone.set()
        self.shutdown()
        self.server_close()
