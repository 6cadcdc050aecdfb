"""A small random T5Gemma 2, as transformers makes and saves it."""

import json

import pytest

from tests.decoder.support import save_tokenizer

ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
STACK = {
    "vocab_size": 133,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "sliding_window": 7,
    "final_logit_softcapping": 1.5,
    "max_position_embeddings": 256,
    "rope_parameters": ROPE,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 14,
    "patch_size": 14,
    "vision_use_head": False,
}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
EOI = 77
"""The id of the token that ends an image: here a letter."""


def make(layers=(LOCAL, GLOBAL)):
    """The network, with these layers in both stacks."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    stack = {**STACK, "num_hidden_layers": len(layers), "layer_types": list(layers)}
    config = transformers.T5Gemma2Config(
        encoder={
            "text_config": stack,
            "vision_config": VISION,
            "mm_tokens_per_image": 1,
            "eoi_token_index": EOI,
        },
        decoder=stack,
        attn_implementation="eager",
    )
    network = transformers.T5Gemma2ForConditionalGeneration(config)
    for name, parameter in network.named_parameters():
        if "norm" in name or "eoi" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "embed_tokens.weight" in name:  # less, or each token is followed by itself
            torch.nn.init.normal_(parameter, std=0.028)
    return network.eval()


def save(network, folder, **options):
    """Saves it with the tokenizer of single characters, which puts `<s>` in front of texts."""
    from tokenizers import Tokenizer, processors

    network.save_pretrained(folder, **options)
    save_tokenizer(folder)
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(file)
    settings = {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
