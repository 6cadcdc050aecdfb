"""Reading the examples of a registered data set."""

from sbs_jax.data import datasets
from sbs_jax.data.registry import find_dataset


def load_examples(dataset, split):
    """Returns the examples of a split of a data set, or of the one of that name."""
    dataset = find_dataset(dataset) if isinstance(dataset, str) else dataset
    return datasets.load_examples(dataset, split)
