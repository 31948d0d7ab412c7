"""A training run, from its config to its export."""

import inspect
import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from diva.audio.frames import WHISPER_SECONDS
from diva.command import quieten
from diva.config import make
from diva.config.mixture import PARTS, part_configs
from diva.data.datamodule import SpeechDataModule
from diva.errors import UserError
from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import load_tokenizer
from diva.models.start import read_start, start_from
from diva.planning.memory import check_memory
from diva.sweeps.folder import TRIAL
from diva.training.best import BestExport, check_best
from diva.training.callbacks import LastCheckpoint, Preemption, RunProgress, Throughput
from diva.training.checkpoints import StreamedCheckpointIO
from diva.training.distributed.activation_checkpointing import checkpoint_activations
from diva.training.distributed.checks import check_hardware, precision_note, refusals
from diva.training.distributed.compilation import compile_layers
from diva.training.loggers import harmless
from diva.training.metrics_file import MetricsFile
from diva.training.module import DivaTraining
from diva.training.results import Results
from diva.training.run_folder import RunRecord, own_folder


def train(config: DictConfig, folder: Path) -> float | None:
    """Run one experiment in `folder`. Returns val/kl, the metric that sweeps minimise."""
    started = time.time()
    quieten()
    folder = own_folder(config, folder)
    seed_everything(config.seed, workers=True, verbose=False)
    check_hardware(config)
    record = RunRecord(folder, config, started)
    if note := precision_note(config.hardware):
        record.say(note)
    throughput = Throughput()
    callbacks = [
        record,
        throughput,
        RunProgress(),
        LastCheckpoint(folder / "checkpoints", config.checkpoint_every, config.val_every),
        Preemption(),
        Results(record, throughput, HydraConfig.get().runtime.choices),
    ]
    check_best(config)
    if config.checkpoint_best is not None:
        callbacks.append(BestExport(folder, config.checkpoint_best, bool(config.resume)))
    if (folder / TRIAL).is_file():
        from diva.sweeps.optuna_study import pruning  # imports Optuna, which other runs do not need

        callbacks += pruning(folder)
    trainer = make_trainer(config, folder, callbacks)
    model_config: DivaConfig = make(config.model)
    start = None if config.resume else read_start(model_config)  # a resumed run loads its own checkpoint
    tokenizer = load_tokenizer(model_config.llm.name)
    data = make_data(config.data, tokenizer, model_config.adapter, folder)
    data.setup("fit")
    record.data_is_there()
    record.say(data.describe())
    check_memory(config, data.train, data.val.values())
    model = build(model_config, tokenizer)
    if start is not None:
        record.say(start_from(model, start))
    record.say_parameters(model)
    if config.objective.distill_weight > 0 and config.objective.distill_from_step >= config.max_steps:
        record.say(
            f"this run only aligns: objective.distill_from_step={config.objective.distill_from_step} is not below"
            f" max_steps={config.max_steps}"
        )
    if config.hardware.compile:
        compile_layers(model)
    if config.hardware.activation_checkpointing:
        checkpoint_activations(model)
    module = make_module(config, model)
    checkpoint = folder / "checkpoints" / "last.ckpt" if config.resume else None
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    validated = any(not name.startswith("train/") for name in trainer.callback_metrics)
    if config.max_steps % config.val_every or not validated:
        # The final metrics must be those of the final weights. A run stopped in its last validation has none yet.
        trainer.validate(module, datamodule=data, verbose=False)
    kl = trainer.callback_metrics.get("val/kl")
    return None if kl is None else float(kl)


def make_data(
    config: DictConfig, tokenizer: PreTrainedTokenizerBase, adapter: AdapterConfig, folder: Path
) -> SpeechDataModule:
    """The data module of a config. Its limits on transcripts are those of the adapter's virtual tokens.

    Keys that are not parameters of the data module, such as data.root, are for interpolation in the corpus's config.
    """
    parts = {f"{PARTS}.{name}": part for name, part in part_configs(config).items()}
    for key, of in ({"data": config} | parts).items():
        if (of.get("max_seconds") or 0) > WHISPER_SECONDS:
            raise UserError(
                f"{key}.max_seconds={of.max_seconds:g}: Whisper hears {WHISPER_SECONDS:g} s at a time, so training"
                " leaves out longer clips; cut them first"
            )
    taken = inspect.signature(SpeechDataModule).parameters.keys() - {"corpus", "augment"}
    values = {
        key: value for key, value in OmegaConf.to_container(config, resolve=True).items() if key in taken
    }
    return SpeechDataModule(
        corpus=make(config.corpus),
        augment=make(config.get("augment")),
        tokenizer=tokenizer,
        max_tokens=adapter.num_virtual_tokens,
        tokens_per_second=adapter.tokens_per_second,
        skipped_tsv=folder / "skipped.tsv",
        **values,
    )


def make_module(config: DictConfig, model: DivaForConditionalGeneration) -> DivaTraining:
    """The LightningModule around `model`, with the objective, optimizer and schedule of the config."""
    return DivaTraining(
        model,
        make(config.objective),
        make(config.optimizer.algorithm),
        make(config.optimizer.schedule),
        config.optimizer.gradient_clip,
        config.hardware.micro_batch_size,
        make(config.precompute),
        make(config.answers),
    )


def make_trainer(config: DictConfig, folder: Path, callbacks: list) -> Trainer:
    """Lightning's Trainer from the hardware config. Validation intervals are in optimizer steps, not epochs."""
    hardware = config.hardware
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv")]
    loggers += [harmless(make(logger)) for logger in (config.logger or {}).values()]
    with refusals():
        return Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.num_nodes,
            strategy=make(hardware.strategy)
            if isinstance(hardware.strategy, DictConfig)
            else hardware.strategy,
            precision=hardware.precision,
            max_steps=config.max_steps,
            max_epochs=-1,
            val_check_interval=config.val_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=config.log_every,
            logger=loggers,
            callbacks=callbacks,
            plugins=None if hardware.accelerator == "tpu" else StreamedCheckpointIO(),  # XLA brings its own
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            deterministic="warn",
            default_root_dir=folder,
        )
