"""What an export says of its hearing: the corpus it was trained on, and from where on it may not have understood."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diva.data.manifest import Manifest
from diva.data.words import distinct_words
from diva.files import written_whole

# Of the validation clips, this fraction has a hearing distance of at most the threshold.
UNDERSTOOD = 0.95


def trained_on(corpus: str, train: Manifest) -> dict[str, Any]:
    """The corpus, as `data=` names it, with its numbers of clips and of distinct words."""
    return {"corpus": corpus, "clips": len(train), "words": distinct_words(train.clips["text"])}


@torch.no_grad()
def hearing_threshold(module: Any, data: Any) -> float | None:
    """The hearing distance that the fraction UNDERSTOOD of the clips of the first validation set does not exceed.

    None without a clip. With sharded weights all ranks must call it together; each measures its part of the clips.
    """
    module.eval()
    split = next(iter(data.val_splits.values()))
    found: list[float] = []
    for batch in data.val_dataloader()[0]:
        batch = batch.to(module.device)
        v = module.model.adapt(*module.frozen[split].frames(batch))
        found += module.model.hearing_distances(v)[batch.valid].tolist()
    return float(np.quantile(found, UNDERSTOOD)) if found else None


def add_to_config(export: Path, **values: Any) -> None:
    """Add values to the config.json of an export."""
    file = export / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | values
    with written_whole(file) as unfinished:
        unfinished.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
