"""The published method's network and batches in PyTorch, of our dimensions and our examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import transformers

from sbs_jax.checkpoints import decoder_config_json
from sbs_jax.models.config import T5Config
from sbs_jax.models.decoder.config import DecoderConfig

Batch = Mapping[str, np.ndarray]


def peer_model(config: T5Config, attention: str) -> transformers.T5ForConditionalGeneration:
    """Hugging Face's T5 v1.1 with the dimensions of `config`, its head untied and drawn as ours."""
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.emb_dim,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.num_encoder_layers,
            num_decoder_layers=config.num_decoder_layers,
            num_heads=config.num_heads,
            dropout_rate=config.dropout_rate,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            use_cache=False,
            decoder_start_token_id=0,
            attn_implementation=attention,
        )
    )
    head = torch.randn(config.vocab_size, config.emb_dim) * config.emb_dim**-0.5
    model.lm_head.weight = torch.nn.Parameter(head)  # transformers 5 ties it whatever we ask for
    return model


def peer_decoder(config: DecoderConfig, attention: str) -> transformers.LlamaForCausalLM:
    """Hugging Face's Llama with the dimensions of `config`, freshly drawn."""
    raw = decoder_config_json.config_to_huggingface(config)
    raw.pop("dtype", None)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**raw, attn_implementation=attention)
    )


def pad_texts(batch: Batch) -> dict[str, torch.Tensor]:
    """Makes each target a text of its own, behind its input, and pads them to the longest.

    Trained is what belongs to a part, as completion-only training does it; ids are ours.
    """
    ids, labels = [], []
    for row, segments in enumerate(batch["decoder_segment_ids"]):
        for segment in range(1, segments.max() + 1):
            mine = segments == segment
            source = batch["decoder_source_ids"][row][mine][0]
            x = batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] == source]
            target = batch["decoder_target_tokens"][row][mine]
            trained = batch["decoder_target_parts"][row][mine] > 0
            # The input's EOS is no part of the text.
            ids.append(np.concatenate([x[:-1], target]))
            labels.append(
                np.concatenate([np.full(len(x) - 1, -100), np.where(trained, target, -100)])
            )
    input_ids = pad(ids, 0)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "labels": pad(labels, -100),
    }


def pad_part(batch: Batch, part: int) -> dict[str, torch.Tensor]:
    """Unpacks the records of one part and pads them to their longest, as the published collator."""
    inputs, targets = [], []
    for row in range(len(batch["encoder_segment_ids"])):
        for segment in range(1, batch["encoder_segment_ids"][row].max() + 1):
            chosen = batch["decoder_segment_ids"][row] == segment
            if batch["decoder_target_parts"][row][chosen][0] == part:
                mine = batch["encoder_segment_ids"][row] == segment
                inputs.append(batch["encoder_input_tokens"][row][mine])
                targets.append(batch["decoder_target_tokens"][row][chosen])
    input_ids = pad(inputs, 0)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "labels": pad(targets, -100),
    }


def pad(sequences: Sequence[np.ndarray], value: int) -> torch.Tensor:
    """Stacks sequences, filled up with `value` to the longest."""
    tensors = [torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
