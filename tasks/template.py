"""A data set of your own: copy this file, change what is marked, and train.

    cp tasks/template.py my_reviews.py     # pip puts it into site-packages/sbs_jax/tasks/
    python -m sbs_jax.train --gin_file=models/t5_1_1_tiny.gin --gin_file=optimizers/adamw.gin \
        --gin_file=runs/train.gin --gin.MIXTURE_OR_TASK_MODULE=my_reviews \
        --gin.MIXTURE_OR_TASK_NAME=my_reviews --gin.DATA_DIR=PATH --gin.MODEL_DIR=PATH \
        --gin.TASK_FEATURE_LENGTHS="{'inputs': 256, 'targets': 128}" --gin.TRAIN_STEPS=1000

The examples lie in ``DATA_DIR/my_reviews/train.jsonl`` and ``test.jsonl``; ``.json``, ``.csv``,
``.tsv`` and ``.parquet`` are read as well. A tenth of the training examples is held out for
validation (``own_validation=True`` reads ``validation.jsonl`` instead). Raw completions of a
teacher may lie beside them, in ``llm/train_CoT_0.json``; ``parser`` names the function of
`sbs_jax.parsers` that takes them apart.

Look at the task first: `python -m sbs_jax.inspect_task --gin_file=runs/inspect_task.gin` with the
same MIXTURE_OR_TASK_MODULE, MIXTURE_OR_TASK_NAME, DATA_DIR and TASK_FEATURE_LENGTHS. Where only
people explain, and no teacher, add --gin.RATIONALE_SOURCE=human. Evaluate with `python -m
sbs_jax.eval --gin_file=runs/eval.gin` with MIXTURE_OR_TASK_MODULE, MIXTURE_OR_TASK_NAME,
TASK_FEATURE_LENGTHS, DATA_DIR, CHECKPOINT_PATH=MODEL_DIR and EVAL_OUTPUT_DIR.

The call registers a task for every method and source: `my_reviews_sbs`,
`my_reviews_joint_teacher`, …. METHOD, LABEL_SOURCE and RATIONALE_SOURCE choose among them when the
data set is named alone. Data in a format of its own, or generated, need a function
``load(split, settings)`` in place of ``convert``: see `sbs_jax.data.registration.register_dataset`.

If your examples already are JSONL, CSV or Parquet with an input, a label and a rationale, you need
no Python at all: see gin/examples/your_data.gin.
"""

from sbs_jax import Row, register_dataset


def to_example(row: Row) -> dict[str, str]:
    """{"text": "So slow!", "stars": 1, "why": "Slow is bad."} -> the fields of an example."""
    # CHANGE: `row.text(field)` says in a sentence what is wrong when a field is missing or no text;
    # with `blank=True` it may be missing. For what you check yourself: `raise row.error("...")`.
    if row["stars"] not in (1, 2, 3, 4, 5):
        raise row.error(f"field 'stars' must be 1 to 5, not {row['stars']!r}")
    return {
        "input": row.text("text"),  # x: without any prefix
        "label": "good" if row["stars"] > 3 else "bad",  # y: always a text, also for numbers
        "rationale": row.text("why", blank=True),  # a person's; '' or a list of several will do
        # A teacher's label and rationale go into "llm_label" and "llm_rationale" where there are
        # any, and a name into "id" (the file's name and the line are the default).
    }


# CHANGE: the name; the labels, where they are few; `scorer="value"` for numbers and expressions.
register_dataset("my_reviews", convert=to_example, labels=("good", "bad"))
