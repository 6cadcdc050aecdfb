"""Our tasks and our loss under T5X's own trainer: ``python -m t5x.train``; see docs/t5x.md.

Nothing else in `sbs_jax` needs this package. Inside it, ``t5x`` means T5X (imports are absolute).
"""

from sbs_jax.configuration import data_settings, gin_reader

try:
    import t5x.trainer  # noqa: F401  (with what it needs in turn)
except ImportError as error:
    raise ImportError(
        f"sbs_jax.t5x needs T5X, which cannot be imported here ({error}); it is not on PyPI: "
        "install it from its repository, https://github.com/google-research/t5x, as docs/t5x.md "
        "says."
    ) from error

data_settings.install()
gin_reader.install()
