"""The hub: what is pushed comes back the same, checked; what can't be had is said in one line.

The library's own client talks to a small hub on this machine.
"""

import base64
import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import same_bits
from small_models import personal, small_checkpoint

from headwater import PushOptions, push
from headwater.checkpoint import Checkpoint
from headwater.cli import main
from headwater.errors import CheckpointError, ConfigError

constants = pytest.importorskip("huggingface_hub.constants")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a public model needs: `server.repositories` are names to commits of files."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", parts[4:5])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._serve("/".join(parts[:2]), parts[3], parts[4])
        else:
            self._answer(404, {"error": self.path})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.server.made.append((name, wanted.get("visibility")))
            self.server.repositories.setdefault(name, [{}])
            self._answer(200, {"url": f"{self.server.address}/{name}", "id": name})
        elif parts == ["api", "validate-yaml"]:
            self._answer(200, {"errors": [], "warnings": []})
        elif parts[-2] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        else:
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])

    def _commit(self, name, lines):
        commits = self.server.repositories[name]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        commits.append(commits[-1] | files)
        commit = _sha(name, len(commits) - 1)
        self._answer(200, {"commitUrl": f"{self.server.address}/{name}/commit/{commit}", "commitOid": commit})

    def _describe(self, name, revision, what):
        found = self._find(name, revision)
        if found is None:
            return
        commit, files = found
        if what == ["tree"]:
            rows = [
                {"type": "file", "path": file, "size": len(data), "oid": _digest(data)} for file, data in files.items()
            ]
            self._answer(200, rows)
        else:
            self._answer(
                200, {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files], "private": False}
            )

    def _serve(self, name, revision, file):
        found = self._find(name, revision)
        if found is None:
            return
        commit, files = found
        if file not in files:
            self._answer(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            self.server.served.append(file)
            headers = {"ETag": f'"{_digest(files[file])}"', "X-Repo-Commit": commit}
            self._answer(200, files[file], headers)

    def _find(self, name, revision):
        commits = self.server.repositories.get(name)
        if not commits:
            self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
            return None
        by_name = {_sha(name, number): files for number, files in enumerate(commits)}
        commit = list(by_name)[-1] if revision == "main" else revision
        if commit not in by_name:
            self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, by_name[commit]

    def _answer(self, status, content, headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


def _sha(name, number):
    return _digest(f"{name}{number}".encode())


def _digest(data):
    return hashlib.sha256(data).hexdigest()[:40]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.made, server.served = {}, [], []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def saved(tmp_path):
    small_checkpoint().save(tmp_path / "model")
    return Checkpoint.load(tmp_path / "model")


def test_what_is_pushed_comes_back_the_same(hub, saved):
    address = push(saved, PushOptions(to="hf:clinic/model"))["pushed"]
    assert "clinic/model/commit/" in address
    assert hub.made == [("clinic/model", "private")]
    again = Checkpoint.load("hf:clinic/model")
    assert again.identity == saved.identity
    assert same_bits(again.tensors, saved.tensors)
    files = hub.repositories["clinic/model"][-1]
    assert files["README.md"] == (saved.path / "card.md").read_bytes()


def test_a_revision_can_be_named_and_nothing_is_loaded_twice(hub, saved, tmp_path):
    push(saved, PushOptions(to="hf:clinic/model", private=False))
    first = _sha("clinic/model", 1)
    small_checkpoint(seed=5).save(tmp_path / "other")
    other = Checkpoint.load(tmp_path / "other")
    push(other, PushOptions(to="hf:clinic/model"))
    assert Checkpoint.load("hf:clinic/model").identity == other.identity
    assert Checkpoint.load(f"hf:clinic/model@{first}").identity == saved.identity
    hub.served.clear()
    Checkpoint.load(f"hf:clinic/model@{first}")
    assert "model.safetensors" not in hub.served


def test_only_what_the_checksums_name_is_loaded(hub, saved):
    push(saved, PushOptions(to="hf:clinic/model"))
    hub.repositories["clinic/model"][-1]["surprise.pkl"] = b"no"
    Checkpoint.load("hf:clinic/model")
    assert "surprise.pkl" not in hub.served


def test_damage_is_found(hub, saved):
    push(saved, PushOptions(to="hf:clinic/model"))
    files = hub.repositories["clinic/model"][-1]
    files["model.safetensors"] = files["model.safetensors"][:-1] + b"\x01"
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        Checkpoint.load("hf:clinic/model")


@pytest.mark.parametrize("place", ["hf:clinic/nothing", "hf:clinic/model@v9", "hf:clinic/bare"])
def test_what_the_hub_does_not_have_is_said(place, hub, saved):
    push(saved, PushOptions(to="hf:clinic/model"))
    hub.repositories["clinic/bare"] = [{"README.md": b""}]
    with pytest.raises(CheckpointError, match="the hub has no such repository, revision or checkpoint"):
        Checkpoint.load(place)


def test_a_name_that_is_none_is_refused(hub):
    with pytest.raises(ConfigError, match="no name on the hub"):
        Checkpoint.load("hf:a/b/c d")
    assert not hub.served


def test_a_hub_that_does_not_answer_is_said(hub, saved):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(CheckpointError, match="can't be"):
        Checkpoint.load("hf:clinic/model")
    with pytest.raises(CheckpointError, match="can't be"):
        push(saved, PushOptions(to="hf:clinic/model"))


def test_clients_own_models_stay_at_home(hub, tmp_path):
    checkpoint = small_checkpoint()
    replace(checkpoint, personal=personal(checkpoint, "a", "b")).save(tmp_path / "model")
    with pytest.raises(ConfigError, match="own models of 2 clients"):
        push(Checkpoint.load(tmp_path / "model"), PushOptions(to="hf:clinic/model"))
    assert not hub.made


def test_on_the_command_line(hub, saved, capsys):
    assert main(["push", str(saved.path), "--to", "hf:clinic/model"]) == 0
    assert f"pushed: {hub.address}/clinic/model/commit/" in capsys.readouterr().out
    assert main(["push", str(saved.path), "--to", "clinic/model"]) == 2
    assert "to = 'clinic/model'" in capsys.readouterr().err
    assert main(["predict", "hf:clinic/model", "--text", "w1 w2"]) == 0
