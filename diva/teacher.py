"""The teacher's states, once per transcript of the corpus instead of once per step.

The teacher is frozen and reads text alone, so h_teacher of a transcript never changes. The table is computed in
an order that depends on the corpus only (not on when training was interrupted), and kept on disk, so a resumed
run, another seed or another ablation finds the very same numbers.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from diva.models.diva import Diva
from diva.pretrained import cache_dir

BATCH = 64
_FORMAT = "1"


class TeacherTable:
    """h_teacher for every clip of a manifest: distinct transcripts [U, D] and each clip's row in them."""

    def __init__(self, states: Tensor, rows: np.ndarray):
        self.states = states
        self.rows = torch.from_numpy(rows)

    def __call__(self, clips: Tensor) -> Tensor:
        """Clip indices [B] (-1: empty row, whose state means nothing) -> states [B, D] on the CPU."""
        return self.states[self.rows[clips.cpu()]]

    @classmethod
    def build(cls, model: Diva, transcripts: list[list[int]], strategy) -> "TeacherTable":
        """Read the table from the cache, or compute it on rank 0 while the others wait."""
        distinct = sorted(set(map(tuple, transcripts)), key=lambda ids: (len(ids), ids))
        row = {ids: number for number, ids in enumerate(distinct)}
        rows = np.array([row[tuple(ids)] for ids in transcripts], dtype=np.int64)
        path = cache_dir() / "teacher" / f"{_key(model, distinct)}.safetensors"
        _write_missing(path, model, distinct)
        strategy.barrier("teacher table")
        return cls(load_file(path)["states"], rows)


@rank_zero_only
def _write_missing(path: Path, model: Diva, distinct: list[tuple[int, ...]]) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    batches = [distinct[i : i + BATCH] for i in range(0, len(distinct), BATCH)]
    device = model.prefix_ids.device
    states = []
    for batch in track(batches, description="teacher reads the transcripts", transient=True):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(x) for x in batch], batch_first=True)
        tokens = torch.tensor([len(x) for x in batch])
        states.append(model.teacher_states(ids.to(device), tokens.to(device)).cpu())
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        temporary = file.name
    save_file({"states": torch.cat(states)}, temporary)
    os.replace(temporary, path)


def _key(model: Diva, distinct: list[tuple[int, ...]]) -> str:
    """Fingerprint of what the states depend on: the LLM's weights, the prompt, the transcripts."""
    digest = hashlib.sha256(_FORMAT.encode())
    digest.update(model.llm.config.to_json_string().encode())
    for _, weight in sorted(model.llm.named_parameters()):
        # A slice of every weight tells one fine-tuned or quantised copy from another.
        digest.update(
            str(weight.dtype).encode()
            + weight.flatten()[:: max(1, weight.numel() // 64)][:64].float().cpu().numpy().tobytes()
        )
    digest.update(repr((model.prefix_ids.tolist(), model.suffix_ids.tolist(), distinct)).encode())
    return digest.hexdigest()[:32]
