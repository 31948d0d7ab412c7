"""Tiny random models in transformers' format, and a tiny corpus in Common Voice's layout."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from diva.models.build import build
from diva.models.configuration import AdapterConfig, DivaConfig, EncoderConfig, LLMConfig, LoraConfig
from diva.models.lora import lora_state
from diva.models.modeling import DivaForConditionalGeneration
from diva.models.parts import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
SENTENCES = [
    "what is the capital of france",
    "how many legs has a spider",
    "tell me a joke about cats",
    "play some music",
    "good morning",
    "what is four times six",
    "who wrote this book",
    "turn on the light in the kitchen please",
    "is it going to rain",
    "stop",
    "how do i bake bread",
    "name three red fruits",
]


def make_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = template
    return fast


def make_llm(folder: Path, tokenizer: PreTrainedTokenizerFast, hidden_size: int = 32) -> Path:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_whisper(folder: Path, decoder_layers: int = 2) -> Path:
    config = WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=decoder_layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=120,
        num_mel_bins=80,
        max_source_positions=1500,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        init_std=0.2,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_model(
    whisper: Path,
    llm: Path,
    seed: int = 0,
    frozen_dtype: str = "float32",
    lora: LoraConfig | None = None,
    **adapter: Any,
) -> DivaForConditionalGeneration:
    """A DiVA of tiny parts with 12 virtual tokens; `adapter` are further values of its config."""
    config = DivaConfig(
        EncoderConfig(str(whisper)),
        AdapterConfig(num_query_tokens=12, **adapter),
        LLMConfig(str(llm), lora=lora),
        frozen_dtype,
    )
    torch.manual_seed(seed)
    return build(config, load_tokenizer(str(llm)))


@torch.no_grad()
def as_if_trained(model: DivaForConditionalGeneration) -> DivaForConditionalGeneration:
    """The model with LoRA matrices that change what its LLM computes."""
    for weight in lora_state(model.llm).values():
        weight.normal_(std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    return model


def noise(seconds: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)


def write_release(root: Path, splits: dict[str, int], seed: int = 0) -> Path:
    """An official-layout release `root/en` with noise for speech; `splits` says how many clips each has."""
    locale = root / "en"
    (locale / "clips").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment"
    durations = ["clip\tduration[ms]"]
    number = 0
    for split, count in splits.items():
        rows = [header]
        for _ in range(count):
            seconds = float(rng.uniform(0.4, 2.2))
            name = f"common_voice_en_{number:06d}.mp3"
            soundfile.write(locale / "clips" / name, noise(seconds, number), 16_000)
            sentence = SENTENCES[number % len(SENTENCES)]
            rows.append(f"speaker{number % 3}\t{name}\t{sentence}\t2\t0\t\t\t\t\ten\t")
            durations.append(f"{name}\t{round(seconds * 1000)}")
            number += 1
        (locale / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    (locale / "clip_durations.tsv").write_text("\n".join(durations) + "\n")
    return root
