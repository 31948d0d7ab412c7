"""What a `_target_` names: the module it is in today, and the parameters it takes."""

from typing import Any

# Modules as configs of earlier revisions name them (users' YAML, committed results), and where they are now.
MOVED = {
    "diva.data.common_voice": "diva.data.corpora.common_voice",
    "diva.data.hub": "diva.data.corpora.hub",
    "diva.data.jsonl": "diva.data.corpora.jsonl",
    "diva.data.spoken_mini": "diva.data.corpora.spoken.corpus",
    "diva.data.webdataset": "diva.data.corpora.webdataset",
    "diva.evaluation.other_systems": "diva.evaluation.systems.others",
    "diva.evaluation.systems": "diva.evaluation.systems.local",
    "diva.models.config": "diva.models.configuration",
    "diva.objectives": "diva.training.losses",
    "diva.precompute": "diva.training.frozen",
    "diva.strategies": "diva.training.distributed.fsdp",
    "diva.sweep_runners": "diva.sweeps.local",
    "diva.sweep_slurm": "diva.sweeps.slurm",
    "diva.sweep_study": "diva.sweeps.optuna_study",
    "diva.tpu": "diva.training.distributed.xla",
}


def current(target: str) -> str:
    """`module.name` with the module's name of today."""
    module, _, name = target.rpartition(".")
    return f"{MOVED.get(module, module)}.{name}"


def with_current(node: Any) -> Any:
    """A copy of a plain config (dicts and lists) in which every `_target_` is the one of today."""
    if isinstance(node, list):
        return [with_current(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {
        key: current(child) if key == "_target_" and isinstance(child, str) else with_current(child)
        for key, child in node.items()
    }
