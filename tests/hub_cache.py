"""Folders as a user's cache of the hub holds them, filled with tiny models in place of the real ones."""

import hashlib
import json
import os
import shutil
from pathlib import Path

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
