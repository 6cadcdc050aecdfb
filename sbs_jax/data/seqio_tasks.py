"""Our tasks in SeqIO's registry, for SeqIO's and T5X's own programs.

Their features are ``inputs``, ``targets`` and ``part``: one integer that says which loss the
target's tokens belong to (`sbs_jax.parts`), or one for each token of a target with several parts.
It is a sequence, often of length 1, which SeqIO's mixtures and trimming leave alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from sbs_jax import metrics
from sbs_jax.data import settings as settings_lib
from sbs_jax.data.datasets import SPLITS, TaskInfo
from sbs_jax.data.elements import read_targets
from sbs_jax.data.tensorflow_setup import seqio, tf
from sbs_jax.parts import LABEL, Method

Features = Mapping[str, seqio.Feature]


def add(task: TaskInfo) -> None:
    """Registers a task with SeqIO; nothing is read before SeqIO reads it."""
    text = seqio.Feature(task.dataset.vocabulary, add_eos=True)
    method = task.definition
    codes = seqio.PassThroughVocabulary(size=len(method.names) + 1)
    part = seqio.Feature(codes, add_eos=False)
    answer = method.target_of("label")

    def label_of(
        text: str, example: Mapping[str, np.ndarray] | None = None, is_target: bool = False
    ) -> str | None:
        """The label in a decoded text; None where the record is about something else."""
        del is_target
        if example is not None and LABEL not in example["part"]:
            return None
        return answer.take_apart(text, settings_lib.current().texts)["label"]

    def accuracy(
        targets: Sequence[str | None], predictions: Sequence[str | None]
    ) -> dict[str, float]:
        """The accuracy of the labels alone: SeqIO's evaluator decodes every record of a task."""
        scores = [
            task.dataset.score(prediction or "", target)
            for prediction, target in zip(predictions, targets, strict=True)
            if target is not None
        ]
        return {"accuracy": metrics.accuracy(scores)}

    seqio.TaskRegistry.add(
        task.name,
        source=seqio.FunctionDataSource(functools.partial(_read, task=task), splits=SPLITS),
        preprocessors=[
            functools.partial(_to_records, method=method),
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
            functools.partial(_finish_targets, method=method),
        ],
        output_features={"inputs": text, "targets": text, "part": part},
        postprocess_fn=label_of,
        # A task of rationales alone has no labels to judge.
        metric_fns=[accuracy] if "label" in method.fields else [],
    )


# Tasks may be added while `preprocessors` is being imported: it imports TensorFlow and SeqIO first.
def _to_records(
    dataset: tf.data.Dataset, output_features: Features, *, method: Method
) -> tf.data.Dataset:
    from sbs_jax.data import preprocessors

    return preprocessors.to_records(dataset, method, output_features)


def _finish_targets(
    dataset: tf.data.Dataset, output_features: Features, *, method: Method
) -> tf.data.Dataset:
    from sbs_jax.data import preprocessors

    return preprocessors.finish_targets(dataset, output_features, method)


def _read(
    split: str, shuffle_files: bool, seed: int | None = None, *, task: TaskInfo
) -> tf.data.Dataset:
    """The data source of a task, in the file's order: there are no files that could be shuffled."""
    del shuffle_files, seed
    # Here rather than inside TensorFlow's tracing, which would wrap the errors.
    task.dataset.vocabulary.resolve()
    elements = read_targets(task, split)
    features = {
        key: np.array([element[key] for element in elements], np.int32 if number else object)
        for key, number in ((key, isinstance(value, int)) for key, value in elements[0].items())
    }
    count = int(elements[-1]["example"]) + 1
    features["example_count"] = np.full(len(elements), count, dtype=np.int32)
    return tf.data.Dataset.from_tensor_slices(features)
