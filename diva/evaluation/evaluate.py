"""Evaluates a system and its baselines on a task, from the config to the folders of results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diva.command import quieten
from diva.config import make
from diva.data.manifest import Skip, count_by_reason
from diva.errors import UserError
from diva.evaluation.conditions import COLUMN
from diva.evaluation.predictions import by_themselves, check_scores, match, read_predictions
from diva.evaluation.reporting.curves import PICTURE, draw
from diva.evaluation.reporting.html import write_report
from diva.evaluation.reporting.tables import Result, table
from diva.evaluation.results import digest, scored, write_results
from diva.evaluation.runner import SAMPLES, Runner, write_answers
from diva.evaluation.samples import Answer, Sample
from diva.evaluation.systems.local import BESIDE, System, beside
from diva.evaluation.task import Task, data_hash
from diva.terminal import say
from diva.training.run_folder import environment

_ROLES = {"teacher": "ceiling", "cascade": "cascade"}


def evaluate(config: DictConfig, choice: str) -> list[Path]:
    """Evaluate the system and its baselines on the task; returns the folders of their results.

    `choice` is the name of the system's config. Raises UserError for what the user can mend.
    """
    quieten()
    plain = plain_config(config)
    task: Task = make(config.task)
    if config.references not in ("task", "file"):
        raise UserError(f"references={config.references} is unknown; it is task or file")
    if config.report not in (None, "html"):
        raise UserError(f"report={config.report} is unknown; it is html or null")
    score = choice == "predictions"
    folders = [_score_file(config, plain, task)] if score else _ask(config, plain, task, choice)
    results = [Result.read(folder) for folder in folders]
    print(table(results))
    for folder in folders:
        say(f"results: {folder}")
    if task.group == COLUMN:
        picture = folders[0] / PICTURE
        picture.write_bytes(draw(results))
        say(f"picture: {picture}")
    if config.report == "html":
        has_audio = not score or config.references == "task"
        say(f"report: {write_report(folders[0], results, task, has_audio)}")
    return folders


def plain_config(config: DictConfig) -> dict[str, Any]:
    """The resolved config. Raises UserError for a variant that the task does not have."""
    variants = config.task.variants
    if variants and config.task.variant not in variants:
        raise UserError(f"task.variant={config.task.variant} is none of {', '.join(variants)}")
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _ask(config: DictConfig, plain: dict[str, Any], task: Task, choice: str) -> list[Path]:
    others = _others(config, task, choice)
    manifest = task.open()
    samples = task.samples(manifest)
    system: System = make(config.system)
    # All systems are built before the first is evaluated, so that a wrong setting is found before hours of work.
    answering = {choice: system} | {name: beside(system, name, config.whisper) for name in others}
    folders = []
    for name, of in answering.items():
        called = config.name if name == choice else f"{name} of {config.name}"
        folder = _folder(config, task, name, [of.identity, data_hash(samples), _asked(plain["task"])])
        labels = None if task.labels is None else list(task.labels)
        runner = Runner(of, task.instruction, task.max_new_tokens, labels, folder, config.batch_size, called)
        answers = runner.run(manifest, samples, config.retry_failed)
        reader = getattr(of, "reader", None)
        origin = {
            "role": _ROLES.get(name, "system"),
            "system": called,
            "identity": of.identity,
            # Ceiling and cascade belong to the systems that have the same LLM with the same prompt.
            "reader": None if reader is None else reader.identity,
            "seconds": round(sum(answer.seconds or 0.0 for answer in answers), 1),
        }
        _write(folder, plain, task, answers, data_hash(samples), manifest.skipped, origin)
        folders.append(folder)
    return folders


def _others(config: DictConfig, task: Task, choice: str) -> list[str]:
    """Names of the baselines. Raises UserError for an unknown name."""
    unknown = [name for name in config.beside if name not in BESIDE]
    if unknown:
        raise UserError(f"beside={', '.join(unknown)} is unknown; there are {' and '.join(BESIDE)}")
    others = [name for name in config.beside if name != choice]
    if not task.transcript and "teacher" in others:
        say(f"no ceiling: the data of {task.full_name} have no transcripts")
        others.remove("teacher")
    return others


def _score_file(config: DictConfig, plain: dict[str, Any], task: Task) -> Path:
    if config.predictions is None:
        raise UserError("system=predictions scores a file: predictions=FILE")
    file = Path(config.predictions)
    lines, skipped = read_predictions(file)
    if malformed := [skip.clip_id for skip in skipped]:
        say(f"{file}: {len(malformed)} skipped as malformed: {', '.join(malformed)}")
    if config.references == "task":
        manifest = task.open()
        samples = task.samples(manifest)
        answers = match(lines, samples, file, len(malformed))
        skipped = [*skipped, *manifest.skipped]
        check_scores(answers, task.metrics, file)
        asked = data_hash(samples)
    else:
        answers = by_themselves(lines, task.labels, file, judged=task.reference is not None)
        asked = data_hash([Sample(a.id, row, a.references, None) for row, a in enumerate(answers)])
    called = file.stem if config.name == "predictions" else config.name
    folder = _folder(config, task, called, [asked, _asked(plain["task"]), file.read_text(encoding="utf-8")])
    write_answers(folder / SAMPLES, answers)
    origin = {"role": "system", "system": called, "identity": {"predictions": str(file)}}
    _write(folder, plain, task, answers, asked, skipped, origin | {"references": config.references})
    return folder


def _folder(config: DictConfig, task: Task, name: str, identity: Any) -> Path:
    """The folder of one system on one task. The same command finds the same folder; another system has another."""
    return Path(config.folder) / task.full_name / f"{name}-{digest(identity)[:8]}"


def _asked(task: dict[str, Any]) -> str:
    """A digest of the task's questions and metrics. Data have a digest of their own, which no path is part of."""
    unsaid = ["corpus", "max_samples"]
    if (
        task.get("layout") == "question_last"
    ):  # the only layout of earlier results, which have to stay comparable
        unsaid.append("layout")
    return digest({key: value for key, value in task.items() if key not in unsaid})


def _write(
    folder: Path,
    plain: dict[str, Any],
    task: Task,
    answers: Sequence[Answer],
    asked: str,
    skipped: Sequence[Skip],
    origin: dict[str, Any],
) -> None:
    """results.json: first the main metric, then all metrics, then config, data and environment."""
    write_results(
        folder,
        {
            "task": task.full_name,
            "version": task.version,
            **scored(answers, task.metrics),
            # Clips that the corpus skipped: no system was asked about them.
            "skipped": count_by_reason(skipped),
            **origin,
            "task_hash": _asked(plain["task"]),
            "data_hash": asked,
            "config": plain,
            **environment(),
        },
    )
