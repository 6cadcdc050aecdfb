"""The model card of an exported student: what it is, how good it is, how to ask it."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import sbs_jax
from sbs_jax.checkpoints.state_dicts import parameter_shapes
from sbs_jax.methods import CUSTOM, METHODS, find_method, read_parts
from sbs_jax.models.config import T5Config
from sbs_jax.models.decoder.config import DecoderConfig
from sbs_jax.models.interface import ModelConfig
from sbs_jax.models.t5gemma2.config import T5Gemma2Config
from sbs_jax.part_templates import fill
from sbs_jax.parts import (
    DEFAULT_JOINT_SEPARATOR,
    DEFAULT_LABEL_PREFIX,
    DEFAULT_RATIONALE_INPUT_SEPARATOR,
    DEFAULT_RATIONALE_PREFIX,
)

_METHODS = {
    "sbs": "Distilling step-by-step: it learned to give the label and, when asked, the rationale "
    "(loss = label loss + λ · rationale loss)",
    "standard": "Finetuning on labels alone",
    "rationale": "Finetuning on rationales alone",
    "joint": "Finetuning on one target: the rationale, then the label",
    "rationale_input": "Finetuning on labels, where the input contains a rationale",
    "weighted_joint": "Finetuning on one target: the rationale, then the label, each with a mean "
    "of its own (loss = label loss + λ · rationale loss)",
}
# The task of Hugging Face, a tag, and what it is called, for each kind of network.
_KINDS: dict[type[ModelConfig], tuple[str, str, str]] = {
    T5Config: ("text2text-generation", "t5", "T5"),
    DecoderConfig: ("text-generation", "decoder", "decoder"),
    T5Gemma2Config: ("text2text-generation", "t5gemma2", "T5Gemma 2"),
}
_SCORES = ("accuracy", "label_loss", "rationale_loss", "rouge_l", "chrf", "faithfulness")


def write(
    *,
    name: str,
    config: ModelConfig,
    dtype: str,
    settings: Mapping[str, Any],
    step: int | None,
    own_scores: Mapping[str, float],
    scores: Mapping[str, Mapping[str, Any]],
) -> str:
    """Writes README.md of an exported folder.

    Args:
      name: the name of the model.
      config: the dimensions of the network.
      dtype: the dtype of its weights.
      settings: see `loading.Source.settings`; {} for weights of others.
      step: the step of the checkpoint.
      own_scores: `validation/accuracy` and the like, of training's own evaluation.
      scores: the scores of `sbs_jax.eval`, by split.

    Returns:
      Markdown, with Hugging Face's front matter.
    """
    task, tag, what = _KINDS[type(config)]
    count = sum(math.prod(shape) for shape in parameter_shapes(config).values())
    sections = [
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\n"
        f"tags:\n- {tag}\n- distilling-step-by-step\n- sbs_jax\n---",
        f"# {name}",
        f"A {what} of {count:,} parameters ({dtype}), exported by sbs_jax {sbs_jax.__version__}.",
    ]
    if settings.get("method") or settings.get("mixture_or_task_name"):
        sections += ["## Training", _training(settings, step)]
    if table := _score_table(own_scores, scores):
        sections += ["## Scores", table]
    if isinstance(config, DecoderConfig):
        ask = _how_to_ask_decoder(name, settings)
    else:
        start = config.bos_id if isinstance(config, T5Gemma2Config) else 0
        ask = _how_to_ask(name, settings, start)
    if isinstance(config, T5Gemma2Config):
        sections.append("It reads texts alone: the vision tower in the files is empty.")
    sections += ["## How to ask", ask]
    return "\n\n".join(sections) + "\n"


def _training(settings: Mapping[str, Any], step: int | None) -> str:
    method, weight = settings.get("method"), settings.get("rationale_weight")
    rows = {
        "Method": f"`{method}`: {_METHODS[method]}" if method in _METHODS else method,
        "Data": settings.get("mixture_or_task_name"),
        "Labels by": settings.get("label_source"),
        "Rationales by": settings.get("rationale_source") if method != "standard" else None,
        "Parts": _parts(settings),
        "λ (weight of the rationale loss)": ("a schedule" if weight is None else f"{weight:g}")
        if method in ("sbs", "weighted_joint")
        else None,
        "Steps": step,
        "Started from": settings.get("initial_checkpoint"),
    }
    return "\n".join(f"- {key}: {value}" for key, value in rows.items() if value is not None)


def _parts(settings: Mapping[str, Any]) -> str | None:
    """What a method of the user's own consists of; None for one of the table."""
    parts = (settings.get("data_settings") or {}).get("parts")
    if not parts or settings.get("method") in METHODS:
        return None
    weights = settings.get("part_weights") or {}
    described = []
    for target in find_method(CUSTOM, read_parts(parts)).targets:
        for part in target.parts:
            given = " (the weight follows a schedule)" if weights.get(part.name, 1) is None else ""
            if weights.get(part.name) is not None:
                given = f" (weight {weights[part.name]:g})"
            described.append(f"{part.name}{given}: `{target.reads}` → `{part.content}`")
    return "; ".join(described)


def _texts(data: Mapping[str, Any]) -> dict[str, str]:
    """The texts around inputs and outputs, those of the data settings or else the defaults."""
    defaults = {
        "label_prefix": DEFAULT_LABEL_PREFIX,
        "rationale_prefix": DEFAULT_RATIONALE_PREFIX,
        "joint_separator": DEFAULT_JOINT_SEPARATOR,
        "rationale_input_separator": DEFAULT_RATIONALE_INPUT_SEPARATOR,
    }
    return {name: data.get(name, default) for name, default in defaults.items()}


def _prefixes(settings: Mapping[str, Any]) -> list[str]:
    """The task prefixes that the student answers, that of the label first if it has one."""
    data = settings.get("data_settings") or {}
    known = _texts(data)
    texts = {
        "LABEL_PREFIX": known["label_prefix"],
        "RATIONALE_PREFIX": known["rationale_prefix"],
    }
    method, parts = settings.get("method"), data.get("parts")
    if method in METHODS:
        definition = METHODS[method]
    elif parts:
        definition = find_method(CUSTOM, read_parts(parts))
    else:
        definition = METHODS["standard"]
    return list(dict.fromkeys(fill(target.prefix, texts) for target in definition.targets))


def _score_table(
    own_scores: Mapping[str, float], scores: Mapping[str, Mapping[str, Any]]
) -> str | None:
    found = {split: dict(values) for split, values in scores.items()}
    for key, value in own_scores.items():
        split, slash, metric = key.partition("/")
        if slash and split not in scores:
            found.setdefault(split, {})[metric] = value
    rows = []
    for split, values in sorted(found.items()):
        others = [n for n in values if n.endswith("_loss") and n not in (*_SCORES, "z_loss")]
        for metric in (*_SCORES, *others):
            score = values.get(metric)
            if not isinstance(score, int | float) or not math.isfinite(score):
                continue
            stderr = values.get(f"{metric}_stderr")
            summary = f"{score:.4f}" + (f" ± {stderr:.4f}" if stderr else "")
            examples = values.get("examples")
            rows.append(
                f"| {split} | {metric.replace('_', ' ')} | {summary} | "
                f"{'' if examples is None else int(examples)} |"
            )
    if not rows:
        return None
    return "\n".join(
        ["| split | score | value ± standard error | examples |", "|---|---|---|---|", *rows]
    )


def _how_to_ask(name: str, settings: Mapping[str, Any], start: int) -> str:
    data = settings.get("data_settings") or {}
    texts = _texts(data)
    label, rationale = texts["label_prefix"], texts["rationale_prefix"]
    method = settings.get("method")
    if not settings:
        return _code(name, ['text = "…"'], "text")
    summary = {
        "sbs": f"`{label}` in front of an input asks for the label, `{rationale}` for the "
        "explanation:",
        "rationale": f"`{rationale}` stands in front of an input:",
        "joint": f"`{label}` stands in front of an input. The answer is the rationale, then "
        f"`{texts['joint_separator']}`, then the label:",
        "rationale_input": f"`{label}` stands in front of an input, and "
        f"`{texts['rationale_input_separator']}` between the input and a rationale:",
        "weighted_joint": f"`{label}` stands in front of an input. The answer is the rationale, "
        f"then `{texts['joint_separator']}`, then the label:",
    }.get(method or "")
    prefixes = _prefixes(settings)
    if summary is None:
        summary = (
            " or ".join(f"`{prefix}`" for prefix in prefixes) + " stands in front of an input:"
        )
    if data.get("prefix_side") == "decoder":
        summary = (
            "The prefixes "
            + " and ".join(f"`{prefix}`" for prefix in prefixes)
            + " are what the decoder is fed first; the input stands alone:"
        )
        return summary + "\n\n" + _decoder_code(name, prefixes, start)
    lines = ['question = "…"', f"for prefix in {json.dumps(prefixes, ensure_ascii=False)}:"]
    return summary + "\n\n" + _code(name, lines, "prefix + question", indent="    ")


def _how_to_ask_decoder(name: str, settings: Mapping[str, Any]) -> str:
    data = settings.get("data_settings") or {}
    prefixes = _prefixes(settings)
    behind = data.get("prefix_side") == "decoder"
    order = "(question, prefix)" if behind else "(prefix + question,)"
    where = "behind" if behind else "in front of"
    lines = "\n".join(
        [
            "import torch",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            'question = "…"',
            f"for prefix in {json.dumps(prefixes, ensure_ascii=False)}:",
            f"    encoded = tokenizer(list({order}), add_special_tokens=False).input_ids",
            "    ids = [token for part in encoded for token in part]",
            "    outputs = model.generate(torch.tensor([ids]))",
            "    print(tokenizer.decode(outputs[0, len(ids) :], skip_special_tokens=True))",
        ]
    )
    names = " and ".join(f"`{prefix}`" for prefix in prefixes)
    return f"{names} stands {where} the input:\n\n```python\n{lines}\n```"


def _code(name: str, lines: list[str], text: str, indent: str = "") -> str:
    body = [
        f'{indent}inputs = tokenizer({text}, return_tensors="pt")',
        f"{indent}outputs = model.generate(**inputs)",
        f"{indent}print(tokenizer.decode(outputs[0], skip_special_tokens=True))",
    ]
    return _block(name, [*lines, *body])


def _decoder_code(name: str, prefixes: list[str], start: int) -> str:
    return _block(
        name,
        [
            'inputs = tokenizer("…", return_tensors="pt")',
            f"for prefix in {json.dumps(prefixes, ensure_ascii=False)}:",
            f"    prompt = [{start}, *tokenizer(prefix, add_special_tokens=False).input_ids]",
            "    outputs = model.generate(**inputs, decoder_input_ids=torch.tensor([prompt]))",
            "    print(tokenizer.decode(outputs[0, len(prompt) :], skip_special_tokens=True))",
        ],
        imports="import torch\n",
    )


def _block(name: str, lines: list[str], imports: str = "") -> str:
    start = textwrap.dedent(
        f"""\
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained("{name}")
        model = AutoModelForSeq2SeqLM.from_pretrained("{name}")
        """
    )
    return "```python\n" + imports + start + "\n".join(lines) + "\n```"
