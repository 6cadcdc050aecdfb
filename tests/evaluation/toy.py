"""A small data set and a small network."""

from sbs_jax.data import choosing, registration

TASK = "evaluator_toy_sbs"
LENGTHS = {"inputs": 32, "targets": 24}
_COUNTS = {"train": 40, "validation": 13, "test": 3}


def register():
    if choosing.task_info(TASK) is None:
        registration.register_dataset(
            "evaluator_toy", load=load, scorer="value", own_validation=True
        )
        registration.register_dataset(
            "evaluator_toy_explained", load=load_explained, scorer="value", own_validation=True
        )


def load_explained(split, settings):
    """The same examples, explained by two people and no teacher."""
    return [
        {key: value for key, value in example.items() if not key.startswith("llm_")}
        | {"rationale": [f"He wrote {i}.", f"Anna has {i} apples and buys pears."]}
        for i, example in enumerate(load(split, settings))
    ]


def load(split, settings):
    return [
        {
            "id": f"{split}-{i}",
            "input": f"Anna has {i} apples and buys {2 * i + 1} pears. " * (1 + i % 2) + "Sum?",
            "label": f"({i} + {2 * i + 1})",
            "rationale": "",
            "llm_label": f"({i} + 1)",
            "llm_rationale": "" if i % 5 == 4 else f"She has {i} and {2 * i + 1} of them.",
        }
        for i in range(_COUNTS[split])
    ]
