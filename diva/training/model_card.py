"""The README.md of an export: description, recipe, metrics and licences of the model."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from diva import markdown
from diva.config import make
from diva.models.configuration import AdapterConfig, LoraConfig

# The licence of each published part that this codebase knows.
LICENCES = {
    "openai/whisper-tiny.en": "MIT",
    "openai/whisper-large-v3": "MIT",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "Apache-2.0",
    "meta-llama/Meta-Llama-3-8B-Instruct": "Meta Llama 3 Community License",
    "meta-llama/Llama-3.2-1B-Instruct": "Llama 3.2 Community License",
}
CORPORA = {
    "spoken_mini": "sentences of this codebase spoken by flite's voices; made anew by `make corpus`",
    "spoken_open": "examples of WordNet 3.0 (WordNet License) and sentences of this codebase, spoken by flite's voices;"
    " made anew by `make corpus-open`",
    "common_voice": "Mozilla Common Voice, CC0-1.0",
}
_UNKNOWN = "see its own card"


def write_card(export: Path, config: DictConfig, choices: dict[str, str], summary: dict[str, Any]) -> None:
    """Write `export/README.md` from a run's config, the chosen config groups and its summary.json."""
    text = card(config, choices, summary)
    (export / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")


def card(config: DictConfig, choices: dict[str, str], summary: dict[str, Any]) -> str:
    """The card's text (Markdown with the hub's front matter)."""
    encoder, llm = config.model.encoder.name, config.model.llm.name
    parts = [_front_matter(encoder, llm), _introduction(config, encoder, llm), _USE]
    parts += [_recipe(config, choices, summary), _figures(summary), _licences(config, choices, encoder, llm)]
    return "\n".join(parts)


def _front_matter(encoder: str, llm: str) -> str:
    return f"""---
library_name: transformers
pipeline_tag: audio-text-to-text
base_model:
- {encoder}
- {llm}
tags:
- speech
- voice-assistant
- diva
---
"""


def _introduction(config: DictConfig, encoder: str, llm: str) -> str:
    adapter: AdapterConfig = make(config.model.adapter)
    rate = f", {adapter.tokens_per_second:g} a second at most," if adapter.tokens_per_second else ""
    return f"""# {config.name}: a Distilled Voice Assistant

[{llm}](https://huggingface.co/{llm}) that hears: an adapter (here) turns the frames of the frozen encoder of
[{encoder}](https://huggingface.co/{encoder}) into {adapter.num_virtual_tokens} virtual tokens{rate} and was
distilled from what the LLM itself makes of the transcript (DiVA, arXiv 2410.02678). It saw no instructions and no
labels, only speech with transcripts. It has the LLM's abilities and faults, and hears what its corpus taught it.
{_with_lora(config)}"""


def _with_lora(config: DictConfig) -> str:
    """A paragraph if the LLM has LoRA matrices; otherwise empty."""
    if _lora(config) is None:
        return ""
    return """
The LLM was trained too, by LoRA matrices (here, beside the adapter). They change all its answers, also those to text
alone. Its teacher was the LLM without them. Loading this model needs peft (`pip install peft`).
"""


def _lora(config: DictConfig) -> LoraConfig | None:
    """The LoRA settings of a run; a run of an earlier revision has none."""
    values = OmegaConf.to_container(config.model.llm, resolve=True).get("lora")  # type: ignore[union-attr]
    return None if values is None or values["r"] is None else make(values)


_USE = """## Use

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("PATH", trust_remote_code=True)  # or: import diva
processor = AutoProcessor.from_pretrained("PATH", trust_remote_code=True)
chat = [{"role": "user", "content": [{"type": "audio", "path": "question.wav"}]}]
inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
ids = model.generate(**inputs, max_new_tokens=128)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(ids, skip_special_tokens=True)[0])
```
"""


def _recipe(config: DictConfig, choices: dict[str, str], summary: dict[str, Any]) -> str:
    objective, optimizer = config.objective, config.optimizer
    rows = {
        "experiment": choices["experiment"],
        "corpus": "; ".join(f"{name}: {terms}" for name, terms in _corpora(config, choices)),
        "clips": ", ".join(f"{count:,} {name}" for name, count in summary["clips_in_corpus"].items()),
        "distinct words in training": f"{summary['trained_on']['words']:,}",
        "steps and recordings a step": f"{config.max_steps:,} of {config.data.batch_size}",
        "losses": f"{objective.distill_weight:g} distillation (from step {objective.distill_from_step}),"
        f" {objective.align_weight:g} alignment; {_distance(objective)}",
        "optimizer": f"AdamW, lr {optimizer.lr:g}, {optimizer.warmup_steps} warm-up steps, then linear to zero,"
        f" weight decay {optimizer.weight_decay:g}, betas {tuple(optimizer.betas)},"
        f" clipped at {optimizer.gradient_clip:g}",
        "adapter": f"{config.model.adapter.kind}, started"
        f" from {config.model.adapter.init}, projection from {config.model.adapter.projection_init}",
        "LoRA on the LLM": _lora_recipe(config),
        "trained parameters": f"{summary['parameters']['trainable'] / 1e6:.1f} M",
        "precision": f"{config.hardware.precision}, {_frozen_precision(config.model)}",
        "time": f"{summary['seconds'] / 60:.1f} minutes, {summary['clips_per_second']:.1f} clips a second",
        "revision of the code": summary["revision"],
        "seed": config.seed,
    }
    return _table("## Recipe", ("", ""), rows.items())


def _lora_recipe(config: DictConfig) -> str:
    if (lora := _lora(config)) is None:
        return "none"
    layers = "all linear layers" if lora.target_modules is None else ", ".join(lora.target_modules)
    return f"rank {lora.r}, alpha {lora.alpha:g}, {layers}"


def _frozen_precision(model: DictConfig) -> str:
    encoder = model.encoder.get("dtype")  # a run of an earlier revision has none
    return f"frozen parts in {model.frozen_dtype}" + (f", the encoder in {encoder}" if encoder else "")


def _distance(objective: DictConfig) -> str:
    """What distillation compares, and where."""
    where = (
        f"and behind {objective.answer_tokens} tokens of the answer" if objective.answer_tokens else "alone"
    )
    return f"{objective.distance} at the last position of the input {where}"


def _figures(summary: dict[str, Any]) -> str:
    names = ("alignment_accuracy", "first_token_agreement", "kl")
    sets = sorted({key.split("/")[0] for key in summary if key.endswith("/kl")})
    rows = [(split, *(f"{summary[f'{split}/{name}']:.3f}" for name in names)) for split in sets]
    text = _table("## Metrics on held-out speech", ("", *(name.replace("_", " ") for name in names)), rows)
    said = [(row["question"], row["teacher"], row["student"]) for row in summary["responses"]]
    return text + "\n" + _table("", ("asked aloud", "the LLM, reading", "this model, hearing"), said)


def _licences(config: DictConfig, choices: dict[str, str], encoder: str, llm: str) -> str:
    rows = [
        ("code", "Apache-2.0"),
        (encoder, LICENCES.get(encoder, _UNKNOWN)),
        (llm, LICENCES.get(llm, _UNKNOWN)),
        *_corpora(config, choices),
    ]
    note = "The adapter is derived from the encoder's model (its decoder) and from the LLM: both parts' terms apply.\n"
    return _table("## Licences of the parts", ("part", "terms"), rows) + "\n" + note


def _corpora(config: DictConfig, choices: dict[str, str]) -> list[tuple[str, str]]:
    """Name and terms of each corpus, of a mixture those of its parts."""
    parts = config.data.get("parts", {}).values()
    names = dict.fromkeys(part.corpus for part in parts) or [choices["data"]]
    return [(name, CORPORA.get(name, _UNKNOWN)) for name in names]


def _table(title: str, header: tuple[str, ...], rows: Any) -> str:
    lines = [title, ""] if title else []
    lines += markdown.table(header, rows)
    return "\n".join(lines) + "\n"
