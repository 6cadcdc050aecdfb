"""A small data set and a small network."""

from sbs_jax.data import registration

TASK = "evaluator_toy_sbs"
LENGTHS = {"inputs": 32, "targets": 24}
_COUNTS = {"train": 40, "validation": 13, "test": 3}


def register():
    if registration.task_info(TASK) is None:
        registration.register_dataset(
            "evaluator_toy", load=load, scorer="value", own_validation=True
        )


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
