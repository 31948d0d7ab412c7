"""The results of a run: export and summary first, then sample responses and model card."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.table import Table

from diva.errors import AudioFault
from diva.models.lora import without_lora
from diva.terminal import decorating, stderr_console
from diva.training.callbacks import Throughput
from diva.training.checkpoints import without_prefix
from diva.training.distributed.fsdp import FSDP2Strategy
from diva.training.hearing import add_to_config, hearing_threshold, trained_on
from diva.training.model_card import write_card
from diva.training.run_folder import RunRecord

_MAX_NEW_TOKENS = 24
Response = tuple[str, str, str]  # question, the teacher's answer to its text, the student's to the speech


class Results(Callback):
    """Writes `export/`, `summary.json`, `responses.tsv` and the model card after the last validation.

    The order matters: if answering or displaying the sample questions fails, export and summary are already written.
    `choices` are the names of the chosen configs, by group.
    """

    def __init__(self, record: RunRecord, throughput: Throughput, choices: Mapping[str, str]):
        self.folder: Path = record.folder
        self.record = record
        self.throughput = throughput
        self.choices = dict(choices)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.max_steps % self.record.config.val_every == 0:
            self.write(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if (
            trainer.state.fn == TrainerFn.VALIDATING
        ):  # a separate validation after training that ended without one
            self.write(trainer, module)

    @torch.no_grad()
    def write(self, trainer: Trainer, module: Any) -> None:
        """Called on every rank: a sharded model must be gathered, and it answers only if all ranks call it together."""
        adapter = trainer.strategy.lightning_module_state_dict()
        final = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("train/")}
        data, model = trainer.datamodule, module.model  # type: ignore[attr-defined]
        summary: dict[str, Any] = {}
        if trainer.is_global_zero:
            model.config.trained_on = trained_on(self.choices["data"], data.train)
            model.save_pretrained(self.folder / "export", state_dict=without_prefix(adapter))
            summary = self.record.write_summary(final, self.throughput, data, model)
        if trainer.is_global_zero or isinstance(trainer.strategy, FSDP2Strategy):
            with decorating("hearing threshold"):
                threshold = hearing_threshold(module, data)
                if trainer.is_global_zero:
                    self._write_threshold(threshold, summary)
            with decorating("sample responses"):
                rows = sample_responses(module, data, self.record.config.sample_responses)
                if trainer.is_global_zero:
                    self._write_responses(rows, summary)
        if trainer.is_global_zero:
            with decorating("model card"):
                write_card(self.folder / "export", self.record.config, self.choices, summary)
            self.record.say_done(final, summary)

    def _write_threshold(self, threshold: float | None, summary: dict[str, Any]) -> None:
        add_to_config(self.folder / "export", hearing_threshold=threshold)
        summary["hearing_threshold"] = threshold
        self.record.rewrite_summary(summary)

    def _write_responses(self, rows: list[Response], summary: dict[str, Any]) -> None:
        names = "question", "teacher", "student"
        summary["responses"] = [dict(zip(names, row, strict=True)) for row in rows]
        self.record.rewrite_summary(summary)
        lines = ["\t".join(row) for row in (names, *rows)]
        (self.folder / "responses.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        table = Table("spoken question", "teacher, reading", "student, hearing", title="Held-out speech")
        for row in rows:
            table.add_row(*row)
        stderr_console().print(table)


def sample_responses(module: Any, data: Any, count: int) -> list[Response]:
    """For the first `count` held-out clips: the question, the teacher's answer to its text, the student's to speech."""
    module.eval()
    manifest = next(iter(data.val.values()))
    processor = module.model.processor
    rows: list[Response] = []
    for index in range(len(manifest)):
        if len(rows) == count:
            break
        text = manifest.text(index)
        try:
            spoken = manifest.waveform(index)
        except AudioFault:
            continue  # this clip cannot be decoded; validation has already counted it as skipped
        read = manifest.teacher_texts[index].as_py()
        turns = [
            [{"role": "user", "content": read}],
            [{"role": "user", "content": [{"type": "audio", "audio": spoken}]}],
        ]
        answers = []
        readers: list[AbstractContextManager[None]] = [without_lora(module.model.llm), nullcontext()]
        for turn, reader in zip(turns, readers, strict=True):
            batch = processor.apply_chat_template(turn).to(module.device)
            with reader:
                ids = module.model.generate(**batch, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
            answers.append(processor.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))
        question, teacher, student = (" ".join(said.split()) for said in (text, *answers))
        rows.append((question, teacher, student))
    return rows
