"""GSM8K: word problems of several steps, solved by people (Cobbe et al. 2021, arXiv 2110.14168).

``DATA_DIR/gsm8k/{train,test}.jsonl``, as published: a line holds ``question`` and ``answer``, the
solution with calculator annotations (``48/2 = <<48/2=24>>24 clips``) and ``#### 24`` at its end.
The number is the label; the solution before it is a human rationale. Completions of a teacher lie
in ``llm/{split}_CoT_0.json`` and so on; they end in ``The answer is 24.`` or ``#### 24``.
"""

import re

import gin

from sbs_jax import Row, register_public
from sbs_jax.metrics import evaluate_expression

_ANNOTATION = re.compile(r"<<[^<>]*>>")
_NOT_DIGITS = str.maketrans("−", "-", ",$%")


@gin.configurable
def annotations(keep: bool = False) -> bool:
    """Tells whether human rationales keep their ``<<48/2=24>>``; T5's vocabulary has no ``<``."""
    return keep


def to_example(row: Row) -> dict[str, str]:
    """Makes an example of a question and its solution."""
    solution, marker, label = row.text("answer").rpartition("####")
    label = label.strip().translate(_NOT_DIGITS)
    if not marker or evaluate_expression(label) is None:
        raise row.error("field 'answer' must end in '#### NUMBER'")
    if not annotations():
        solution = _ANNOTATION.sub("", solution)
    return {
        "input": row.text("question").strip(),
        "label": label,
        "rationale": solution.strip(),
    }


load = register_public(
    "gsm8k",
    convert=to_example,
    parser="gsm8k",
    scorer="value",
    tfds="gsm8k",
    huggingface=("openai/gsm8k", "main"),
).load
