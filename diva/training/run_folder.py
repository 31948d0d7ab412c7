"""The files of a run besides its weights: config.yaml, overrides.yaml, skipped.tsv, summary.json."""

import json
import platform
import subprocess
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, read_write

from diva import terminal
from diva.data.datamodule import SpeechDataModule
from diva.data.manifest import count_by_reason
from diva.files import written_whole
from diva.folders import is_first_process, take, take_new
from diva.models.modeling import DivaForConditionalGeneration
from diva.training.callbacks import Throughput

_VERSIONS = ("torch", "torchaudio", "lightning", "transformers", "datasets", "hydra-core")


def own_folder(config: DictConfig, folder: Path) -> Path:
    """The folder of the run, locked until this process ends.

    If the user did not name the folder and another process has locked it, the run takes a new name.
    Only the process that writes takes the lock. On a TPU the hosts have no rank numbers yet at this time.
    """
    if config.hardware.accelerator == "tpu" or not is_first_process():
        return folder
    if any(override.startswith("hydra.run.dir=") for override in HydraConfig.get().overrides.hydra):
        take(folder)
        return folder
    folder = take_new(folder)
    hydra: Any = HydraConfig.get()
    with read_write(hydra):  # Lightning reads it there for the processes that it starts
        hydra.run.dir = hydra.runtime.output_dir = str(folder)
    return folder


class RunRecord(Callback):
    """Writes into `folder`, on rank 0 only."""

    def __init__(self, folder: Path, config: DictConfig, started: float):
        self.folder = folder
        self.config = config
        self.started = started
        self.seconds_of_data = 0.0
        if not config.resume:
            self._write_config()

    def data_is_there(self) -> None:
        """Note that the corpus is made, read and decoded. A later run on it need not repeat that."""
        self.seconds_of_data += time.time() - self.started

    def state_dict(self) -> dict[str, float]:
        return {"seconds": time.time() - self.started, "seconds_of_data": self.seconds_of_data}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """A resumed run continues the count."""
        self.started -= state_dict["seconds"]
        self.seconds_of_data += state_dict["seconds_of_data"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.config.resume:  # by now the checkpoint was loaded, so config and checkpoint agree
            self._say_changes()
            self._write_config()

    @rank_zero_only
    def _say_changes(self) -> None:
        """Report changed keys: a resumed run composes its overrides with the present YAML files, which may differ."""
        before, now = (
            _leaves(config) for config in (OmegaConf.load(self.folder / "config.yaml"), self.config)
        )
        keys = sorted((before.keys() | now.keys()) - {"resume"})
        changed = [f"{k} {before.get(k)} -> {now.get(k)}" for k in keys if before.get(k) != now.get(k)]
        if changed:
            self.say(f"resumed with another config: {', '.join(changed)}")

    @rank_zero_only
    def _write_config(self) -> None:
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "config.yaml", resolve=True)
        overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
        OmegaConf.save(OmegaConf.create(overrides), self.folder / "overrides.yaml")

    @rank_zero_only
    def say(self, text: str) -> None:
        terminal.say(text)

    @rank_zero_only
    def say_parameters(self, model: DivaForConditionalGeneration) -> None:
        counts = parameter_counts(model)
        self.say(
            f"parameters: {counts['trainable'] / 1e6:.1f} M trainable, {counts['frozen'] / 1e6:.1f} M frozen"
        )

    def write_summary(
        self,
        figures: dict[str, float],
        throughput: Throughput,
        data: SpeechDataModule,
        model: DivaForConditionalGeneration,
    ) -> dict[str, Any]:
        """Write summary.json on rank 0: the final metrics first, then config and environment; no responses yet."""
        summary: dict[str, Any] = {
            **figures,
            "seconds": round(time.time() - self.started, 1),
            "seconds_of_data": round(self.seconds_of_data, 1),
            "clips_per_second": round(throughput.clips_per_second, 2),
            "data_wait_fraction": round(throughput.waited_fraction, 4),
            "clips_seen": throughput.clips,
            "clips_in_corpus": data.clips_in_corpus,
            "trained_on": model.config.trained_on,
            "clips_skipped": {split: count_by_reason(skips) for split, skips in data.skipped.items()},
            **({"parts": parts} if (parts := data.parts) else {}),
            "parameters": parameter_counts(model),
            "responses": [],
            **environment(),
        }
        self.rewrite_summary(summary)
        return summary

    def rewrite_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json atomically. Bytes that are not UTF-8 (in file names) are written as JSON escapes."""
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        with written_whole(self.folder / "summary.json") as file:
            file.write_text(text, encoding="utf-8", errors="backslashreplace")

    def say_done(self, figures: dict[str, float], summary: dict[str, Any]) -> None:
        main = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self.say(f"done in {summary['seconds'] / 60:.1f} min: {main}\nrun folder: {self.folder}")


def parameter_counts(model: DivaForConditionalGeneration) -> dict[str, int]:
    counts = {"trainable": 0, "frozen": 0}
    for parameter in model.parameters():
        counts["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
    return counts


def environment(apart_from: str | None = None) -> dict[str, Any]:
    """Git revision (see `git_revision`), versions and machine that the metrics were computed with."""
    return {
        "revision": git_revision(apart_from),
        "versions": _versions(),
        "machine": {
            "system": platform.platform(),
            "cpu_threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _versions() -> dict[str, str]:
    """Versions of the installed packages. A benchmark may run without some of them."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_revision(apart_from: str | None = None) -> str:
    """The commit of the source tree, marked if it has uncommitted changes; "unknown" outside a clone.

    Changes below the folder `apart_from`, a path from the top of the tree, are ignored.
    """
    try:
        describe = ("describe", "--always", "--abbrev=12", "--exclude=*")
        if apart_from is None:
            return _git(*describe, "--dirty")
        files = ":(top)", f":(top,exclude){apart_from}"
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *files)
        return _git(*describe) + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*command: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(
        ["git", *command], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def _leaves(config: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Key with dots -> value, interpolations resolved."""
    node = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    if not isinstance(node, dict) or not node:
        return {".".join(path): node}
    leaves = (_leaves(child, (*path, str(name))) for name, child in node.items())
    return {key: value for of_child in leaves for key, value in of_child.items()}
