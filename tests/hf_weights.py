"""Whole trees of parameters from Hugging Face's tensors and back, as loading and export name them.

The programs read and write the same tensors piece by piece (`StoredTensor`); tests want them whole.
"""

import numpy as np
from flax import traverse_util

from sbs_jax.checkpoints import decoder_huggingface, huggingface, state_dicts
from sbs_jax.checkpoints.tensors import read_whole
from sbs_jax.models.decoder.config import DecoderConfig


def read_params(stored):
    """The tree of float32 parameters that are stored by path."""
    flat = {path: np.array(read_whole(tensor), np.float32) for path, tensor in stored.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def load_huggingface(folder):
    """The `(config, params)` of a T5 that transformers saved."""
    config, stored = huggingface.open_huggingface(folder)
    return config, read_params(stored)


def params_from_huggingface(state_dict, config):
    """Our parameters of a T5's state dict."""
    return read_params(huggingface.match_huggingface(state_dict, config))


def params_to_huggingface(params, config):
    """The state dict of our parameters, of a T5 or a decoder; undoes the function above."""
    stored = traverse_util.flatten_dict(params, sep="/")
    room = huggingface
    if isinstance(config, DecoderConfig):
        room = decoder_huggingface
        stored = decoder_huggingface.in_own_order(stored, config)
    named = state_dicts.named(stored, room.huggingface_sources(config))
    return {name: np.ascontiguousarray(read_whole(tensor)) for name, tensor in named.items()}
