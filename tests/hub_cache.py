"""The hub's place taken: a user's cache of it, filled with tiny models, and its API for uploads on loopback."""

import base64
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from safetensors.torch import load_file, save_file
from torch import Tensor


def put(hub: Path, name: str, source: Path) -> Path:
    """Store a folder's files as the hub's client stores a download of `name`: blobs, links to them, a ref."""
    root = hub / f"models--{name.replace('/', '--')}"
    revision = hashlib.sha1(name.encode()).hexdigest()
    snapshot = root / "snapshots" / revision
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(revision)
    for file in filter(Path.is_file, source.iterdir()):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def shard(folder: Path, extra: dict[str, Tensor], shards: int = 4) -> None:
    """Spread a folder's weights and `extra` ones over files with an index, as transformers writes large models."""
    state = load_file(folder / "model.safetensors") | extra
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(state), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: state[name].contiguous().clone() for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(value.nbytes for value in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_config(folder: Path, model_type: str = "diva", **references: str) -> None:
    """A config.json as the authors publish it."""
    values = {
        "architectures": ["DiVAModel"],
        "model_type": model_type,
        "torch_dtype": "float32",
        **references,
    }
    values["auto_map"] = {"AutoConfig": "configuring_diva.DiVAConfig", "AutoModel": "modeling_diva.DiVAModel"}
    (folder / "config.json").write_text(json.dumps(values))


class _Uploads(BaseHTTPRequestHandler):
    """What `huggingface_hub` asks for an upload."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_POST(self):
        body, url = self.body(), f"http://{self.headers['host']}"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.reply({"url": f"{url}/{asked['organization']}/{asked['name']}"})
        elif "/preupload/" in self.path:
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.reply({"files": [{"path": f["path"]} | modes for f in json.loads(body)["files"]]})
        elif "/commit/" in self.path:
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    (self.folder / entry["value"]["path"]).write_bytes(content)
            self.reply({"commitUrl": f"{url}/me/it/commit/0", "commitOid": "0" * 40})
        else:
            self.reply({"errors": [], "warnings": []})  # of the model card

    def do_HEAD(self):
        self.reply({}, 404)

    do_GET = do_HEAD  # noqa: N815

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers["content-length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, values: dict, status: int = 200) -> None:
        text = b"" if self.command == "HEAD" else json.dumps(values).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *given) -> None:
        pass


@contextlib.contextmanager
def upload_api(folder: Path) -> Iterator[str]:
    """The address of a stand-in of the hub that puts the files of a commit into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = type("Handler", (_Uploads,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
