r"""A data set of your own: copy this file, change what is marked, and train.

    cp tasks/template.py my_reviews.py     # pip puts it into site-packages/sbs_jax/tasks/
    python -m sbs_jax.train --gin_file=models/t5_1_1_tiny.gin --gin_file=optimizers/adamw.gin \
        --gin_file=runs/train.gin --gin.MIXTURE_OR_TASK_MODULE=my_reviews \
        --gin.MIXTURE_OR_TASK_NAME=my_reviews --gin.DATA_DIR=PATH --gin.MODEL_DIR=PATH \
        --gin.TASK_FEATURE_LENGTHS="{'inputs': 256, 'targets': 128}" --gin.TRAIN_STEPS=1000

Look at it first: `python -m sbs_jax.inspect --gin_file=runs/inspect.gin` with the same
MIXTURE_OR_TASK_MODULE, MIXTURE_OR_TASK_NAME, DATA_DIR and TASK_FEATURE_LENGTHS. Where only people
explain, and no teacher, add --gin.RATIONALE_SOURCE=human. Evaluate with `python -m sbs_jax.eval
--gin_file=runs/eval.gin` with MIXTURE_OR_TASK_MODULE, MIXTURE_OR_TASK_NAME, TASK_FEATURE_LENGTHS,
DATA_DIR, CHECKPOINT_PATH=MODEL_DIR and EVAL_OUTPUT_DIR.

A data set is one function that returns the examples of a split, and one call that registers it. The
call makes a task for every method and source: `my_reviews_sbs`, `my_reviews_joint_teacher`, ….
METHOD, LABEL_SOURCE and RATIONALE_SOURCE choose among them when the data set is named alone.

If your examples already are JSONL, CSV or Parquet with an input, a label and a rationale, you need
no Python at all: see gin/examples/your_data.gin.
"""

from __future__ import annotations

from sbs_jax.data.registration import register_dataset
from sbs_jax.data.release import Example
from sbs_jax.data.rows import Row, read_rows
from sbs_jax.data.settings import DataSettings

NAME = "my_reviews"  # CHANGE: letters, digits and underscores; no other data set may have it


def load(split: str, settings: DataSettings) -> list[Example]:
    """Returns the examples of ``train`` or ``test``, always in the same order.

    It is called whenever the data set is read, never at import. ``DATA_DIR/NAME/`` is the place
    where data sets live; a generator needs no files at all.
    """
    # CHANGE: which file. `read_rows` knows .jsonl, .json, .csv, .tsv and .parquet.
    path = settings.folder(NAME) / f"{split}.jsonl"
    return [to_example(row) for row in read_rows(path)]


def to_example(row: Row) -> Example:
    """Makes an example of a line.

    ``row.text(field)`` says in a sentence what is wrong when the field is missing or no text;
    with ``blank=True`` it may be missing. For what you check yourself: ``raise row.error("...")``.

    {"text": "So slow!", "stars": 1, "why": "Slow is bad.", "llm": {...}}
    ->  {"id": "train-1", "input": "So slow!", "label": "bad", "rationale": "Slow is bad.", ...}
    """
    # CHANGE: all of this.
    stars = row["stars"]
    if stars not in (1, 2, 3, 4, 5):
        raise row.error(f"field 'stars' must be 1 to 5, not {stars!r}")
    example: Example = {
        "id": f"{row.path.stem}-{row.line}",  # unique; names the example in predictions
        "input": row.text("text"),  # x: without any prefix
        "label": "good" if stars > 3 else "bad",  # y: always a text, also where it is a number
        "rationale": row.text("why", blank=True),  # a person's; '' or a list of several will do
    }
    # The teacher's label and rationale (a text or a list): leave both keys out where there is no
    # teacher; '' stands for an answer that could not be parsed. `sbs_jax.parsers.PARSERS` takes raw
    # completions apart, and `sbs_jax.data.release.load_release` reads the authors' layout whole.
    if "llm_label" in row:
        example["llm_label"] = row.text("llm_label", blank=True)
        example["llm_rationale"] = row.text("llm_rationale", blank=True)
    return example


register_dataset(
    NAME,
    load=load,
    scorer="exact_match",  # CHANGE: or "value", for numbers and arithmetic expressions
    labels=("good", "bad"),  # CHANGE: all labels, where they are few; leave it out otherwise
    own_validation=False,  # CHANGE: True if `load` knows the split "validation", too; else a tenth
    # of the training examples is held out.
)
