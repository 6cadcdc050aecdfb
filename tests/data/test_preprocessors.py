import numpy as np
import pytest

from sbs_jax import methods
from sbs_jax.data import preprocessors
from sbs_jax.data.settings import DataSettings, override
from sbs_jax.data.tensorflow_setup import tf
from sbs_jax.parts import LABEL, RATIONALE


def records(method, **settings):
    elements = {
        "input": ["x0", "x1", "x2"],
        "target_label": ["y0", "y1", ""],
        "target_rationale": ["r0", " \n", "r2"],
        "id": ["a", "b", "c"],
        "label": ["g0", "g1", "g2"],
        "example": np.arange(3, dtype=np.int32),
        "example_count": np.full(3, 3, np.int32),
        "variant": np.zeros(3, np.int32),
        "unneeded": ["u"] * 3,
    }
    with override(DataSettings(**settings)):
        dataset = tf.data.Dataset.from_tensor_slices(elements)
        made = preprocessors.to_records(dataset, method)
        assert made.element_spec["part"].shape.rank == 1
        return [
            (ex["inputs"].decode(), ex["targets"].decode(), *ex["part"], ex["id"].decode())
            for ex in made.as_numpy_iterator()
        ]


def test_sbs_gives_neighbouring_records_and_drops_blanks():
    assert records("sbs") == [
        ("predict: x0", "y0", LABEL, "a"),
        ("explain: x0", "r0", RATIONALE, "a"),
        ("predict: x1", "y1", LABEL, "b"),
        ("explain: x2", "r2", RATIONALE, "c"),
    ]


def test_blank_rationales_may_be_kept_but_not_blank_labels():
    assert records("sbs", keep_blank_rationales=True) == [
        ("predict: x0", "y0", LABEL, "a"),
        ("explain: x0", "r0", RATIONALE, "a"),
        ("predict: x1", "y1", LABEL, "b"),
        ("explain: x1", " \n", RATIONALE, "b"),
        ("explain: x2", "r2", RATIONALE, "c"),
    ]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("standard", [("[label] x0", "y0", LABEL, "a"), ("[label] x1", "y1", LABEL, "b")]),
        (
            "rationale",
            [("[rationale] x0", "r0", RATIONALE, "a"), ("[rationale] x2", "r2", RATIONALE, "c")],
        ),
    ],
)
def test_single_parts_and_prefixes(method, expected):
    assert records(method, label_prefix="[label] ", rationale_prefix="[rationale] ") == expected


def test_more_examples_than_a_chunk_keep_their_order(monkeypatch):
    monkeypatch.setattr(preprocessors, "CHUNK", 2)
    assert [record[3] for record in records("sbs")] == ["a", "a", "b", "c"]


def test_every_method_has_records():
    assert set(preprocessors.METHODS) == set(methods.METHODS)
