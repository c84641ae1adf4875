"""`yupana push` and `pull` against a local stand-in of the hub's HTTP API, and the card against the run's records."""

import base64
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from conftest import TINY

pytestmark = pytest.mark.slow
pytest.importorskip("huggingface_hub")

TOKEN = "hf_standin"
REVISION = "a" * 40


class Hub:
    """Repositories in memory, and what the hub's API answers about them."""

    def __init__(self):
        self.repositories: dict[str, dict] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status, value=b"", headers=None):
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
                    self.send_header(name, text)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if not body and self.headers.get("Transfer-Encoding") == "chunked":
                    while (size := int(self.rfile.readline(), 16)) > 0:
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                self.answer(*hub.post(urlsplit(self.path).path, body, self.headers.get("Authorization")))

            def do_GET(self):
                self.answer(*hub.get(unquote(urlsplit(self.path).path)))

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def post(self, path, body, login):
        if login != f"Bearer {TOKEN}":
            return 401, {"error": "no login"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.repositories:
                return 409, {"error": "exists", "url": f"{self.url}/{name}"}
            self.repositories[name] = {"private": asked.get("visibility") == "private", "files": {}}
            return 200, {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.repositories[name]["files"][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return 200, {"success": True, "commitOid": REVISION, "commitUrl": f"{self.url}/{name}/commit/{REVISION}"}
        return 404, {"error": path}

    def get(self, path):
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            found = self.repositories.get(name)
            if found is None:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            if "/tree/" in path:
                return 200, [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in found["files"].items()
                ]
            siblings = [{"rfilename": n, "size": len(c)} for n, c in found["files"].items()]
            return 200, {"id": name, "modelId": name, "sha": REVISION, "private": found["private"], "siblings": siblings,
                         "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
        name, _, rest = path.strip("/").partition("/resolve/")
        content = self.repositories.get(name, {"files": {}})["files"].get(rest.partition("/")[2])
        if content is None:
            return 404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"}
        return 200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": REVISION}


@pytest.fixture(scope="module")
def hub():
    made = Hub()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    from yupana.run import RunDirectory
    from yupana.train.begin import begin

    path = tmp_path_factory.mktemp("runs") / "tiny"
    begin(RunDirectory(path), "7m", None, [*TINY, "--train.steps=4", f"--data.corpus={corpus}"])
    return path


@pytest.fixture
def call(yupana, hub, tmp_path):
    def at_hub(*arguments, token=TOKEN, **more):
        env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", **more}
        env |= {"HF_TOKEN": token} if token else {}
        return yupana(*arguments, env=env)

    return at_hub


def test_a_dry_run_shows_every_file_and_sends_none(call, hub, run):
    done = call("push", run, "ada/dry", "--dry_run", "--json", token=None)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    names = [file["path"] for file in result["files"]]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "run.yaml", "metrics.jsonl"} <= set(names)
    assert "env.json" not in names
    assert result["private"] is True
    assert "ada/dry" not in hub.repositories
    assert "nothing was sent" in call("push", run, "ada/dry", "--dry_run", token=None).stdout


def test_the_card_says_what_the_run_recorded(call, run):
    card = json.loads(call("push", run, "ada/dry", "--dry_run", "--json", "--license", "apache-2.0").stdout)["card"]
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    env = json.loads((run / "env.json").read_text())
    loss = [line["val_loss"] for line in last if "val_loss" in line][-1]
    assert f"{loss:.4f} nats a token" in card
    assert f"{4 * 8 * 32:,}" in card  # tokens
    assert f"{4 * 8 * 32 * env['flops_per_token']['palm']:.3g} (palm)" in card
    assert "license: apache-2.0" in card
    assert "energy" not in card.lower()  # nothing measured it
    assert str(run.parent) not in card


def test_pushed_privately_and_pulled_again(call, hub, run, tmp_path):
    done = call("push", run, "ada/llama", "--json")
    assert done.returncode == 0, done.stderr
    sent = hub.repositories["ada/llama"]
    assert sent["private"] is True
    result = json.loads(done.stdout)
    assert {f["path"]: f["sha256"] for f in result["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in sent["files"].items()
    }
    done = call("pull", "ada/llama", "--out", tmp_path / "back", "--json")
    assert done.returncode == 0, done.stderr
    for name, content in sent["files"].items():
        if name.endswith((".json", ".safetensors", ".md", ".yaml")):
            assert (tmp_path / "back" / name).read_bytes() == content
    from yupana.model import huggingface

    assert huggingface.read(tmp_path / "back").shape.n_layers == 2


def test_what_can_go_wrong_is_one_sentence(call, hub, run, tmp_path):
    hub.repositories["ada/open"] = {"private": False, "files": {}}
    for arguments, options, told in (
        (("push", run, "ada/x"), {"token": None}, "not logged in to the hub: run hf auth login"),
        (("push", run, "ada/x"), {"token": "hf_wrong"}, "your login has no right to it"),
        (("push", run, "ada/open"), {}, "exists and is public"),
        (("push", run, "nowhere"), {}, "is no repository: write NAME/MODEL"),
        (("push", tmp_path, "ada/x"), {}, "is not a run directory"),
        (("pull", "ada/none", "--out", tmp_path / "n"), {}, "the hub has no model ada/none"),
        (("push", run, "ada/x"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached"),
        (("push", run, "ada/x"), {"HF_HUB_OFFLINE": "1"}, "the hub is switched off here"),
    ):
        done = call(*arguments, **options)
        assert done.returncode == 2, (arguments, done.stderr)
        assert told in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert not hub.repositories["ada/open"]["files"]
