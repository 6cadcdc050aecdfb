"""Networks of Hugging Face's transformers with the weights of t5_weights.py.

torch and transformers come with the extra `parity`. Where they are missing, both names are None, a
test that asks for a network is skipped, and so is one that is marked `parity`.
"""

import functools

import pytest

from tests import t5_weights

try:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
except ImportError:
    torch = transformers = None


def require_torch():
    if torch is None:
        pytest.skip("torch or transformers is not installed: pip install -e '.[parity]'")


@functools.cache
def hf_model(version, shape):
    """A `T5ForConditionalGeneration` in eval mode."""
    require_torch()
    config = t5_weights.hf_config(version, shape)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**config))
    tensors = {name: torch.tensor(x) for name, x in t5_weights.state_dict(version, shape).items()}
    if not config["tie_word_embeddings"]:
        # transformers 5 ties every T5.
        model.lm_head.weight = torch.nn.Parameter(tensors["lm_head.weight"])
    model.load_state_dict(tensors, strict=True)
    return model.eval()
