"""A quick upper bound of a step's memory, from widths and lengths alone.

Each training starts with a check of its memory. Counting a step (`diva.planning.counting`) takes seconds, and most runs
fit many times over. For them this bound is enough. Where it does not show that a run fits, the step is counted.
"""

from diva.audio.frames import SAMPLES_PER_FRAME
from diva.models.configuration import DivaConfig
from diva.models.prompts import user_turn
from diva.models.skeleton import Architecture
from diva.planning.counting import Batch, Work

# LLMs whose layers are attention and one MLP with a gate.
_DENSE = {"llama", "qwen2", "qwen3", "mistral", "smollm3", "olmo2", "phi3"}
_FLOAT = 4  # bytes; at most, because all that is narrower is counted as float32
# Values that a layer stores for its backward pass, at each position: multiples of its width and of the width of its
# MLP, and scores of each attention head for each position that it attends to. Autocast's copies are included.
# With these numbers the bound is 4 to 7 times what is counted for the shipped models.
_OF_WIDTH, _OF_MLP, _OF_SCORES = 20, 6, 4
_OF_SAMPLES = 64  # values of the log-mel's computation for each sample
_OF_LOGITS = 12  # copies of the logits of both models, with their log-softmax
# AdamW's two moments, gradients and their buckets under DDP, in addition to the weights.
_OF_TRAINED = 5


def bound_bytes(config: DivaConfig, parts: Architecture, batch: Batch, work: Work) -> float | None:
    """An upper bound of all bytes on a device in a step, with weights and AdamW's state.

    None for an encoder or an LLM of a family whose layers may hold more than this knows of, and with LoRA.
    """
    whisper, llm = parts.encoder, parts.llm.get_text_config()
    if llm.model_type not in _DENSE or whisper.model_type != "whisper" or parts.decoder != whisper:
        return None
    if config.llm.lora is not None:
        return None
    rows, frames, queries = batch.rows, batch.samples // SAMPLES_PER_FRAME, config.adapter.num_query_tokens
    prompt = user_turn(parts.tokenizer, config.llm.system_prompt, template_kwargs=config.llm.template_kwargs)
    around = len(prompt.prefix_ids) + len(prompt.suffix_ids) + batch.answer
    width = max(llm.hidden_size, llm.num_attention_heads * (getattr(llm, "head_dim", None) or 0))

    def kept(layers: int, length: int, keys: int, width: int, mlp: int, heads: int) -> int:
        return layers * rows * length * (_OF_WIDTH * width + _OF_MLP * mlp + _OF_SCORES * heads * keys)

    def trained_through(layers: int) -> int:
        """Without a gradient only the tensors of the layer at work are alive, and those that it hands on."""
        return layers if work.trains else 2

    def read(layers: int, length: int) -> int:
        length += around
        return kept(layers, length, length, width, llm.intermediate_size, llm.num_attention_heads)

    e, encoder, decoder = whisper.d_model, whisper.encoder_layers, whisper.decoder_layers
    values = kept(2, frames, frames, e, whisper.encoder_ffn_dim, whisper.encoder_attention_heads)
    values += rows * batch.samples * _OF_SAMPLES + rows * 2 * frames * _OF_WIDTH * e
    values += kept(
        trained_through(decoder),
        queries,
        queries + frames,
        e,
        whisper.decoder_ffn_dim,
        whisper.decoder_attention_heads,
    )
    values += trained_through(decoder) * rows * frames * _OF_MLP * e  # keys and values of the frames
    values += rows * queries * _OF_WIDTH * (e + width)  # projection and alignment
    values += read(trained_through(llm.num_hidden_layers), config.adapter.num_virtual_tokens)
    values += read(2, batch.text_width)
    values += rows * (batch.answer + 1) * _OF_LOGITS * llm.vocab_size
    trained = decoder * (8 * e * e + 2 * e * whisper.decoder_ffn_dim + 32 * e) + 2 * queries * e
    trained += (config.adapter.stack * e + llm.hidden_size + 8) * (llm.hidden_size + 8)
    frozen = encoder * (4 * e * e + 2 * e * whisper.encoder_ffn_dim + 32 * e)
    frozen += (3 * (whisper.num_mel_bins + e) + whisper.max_source_positions + 8) * e
    frozen += llm.num_hidden_layers * (4 * width + 3 * llm.intermediate_size + 8) * width
    frozen += 2 * llm.vocab_size * llm.hidden_size
    return _FLOAT * (values + frozen + (1 + _OF_TRAINED) * trained)
