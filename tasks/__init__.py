"""SeqIO tasks, one file a data set; installed as ``sbs_jax.tasks``.

Importing this package registers them all; gin files import the one that they need. `template` is
the tutorial: a copy of it is a task of your own.
"""

from . import (
    anli1,
    arithmetic,
    asdiv,
    coin_flip,
    cqa,
    esnli,
    gsm8k,
    last_letters,
    mawps,
    strategyqa,
    svamp,
    your_data,
)

__all__ = [
    "anli1",
    "arithmetic",
    "asdiv",
    "coin_flip",
    "cqa",
    "esnli",
    "gsm8k",
    "last_letters",
    "mawps",
    "strategyqa",
    "svamp",
    "your_data",
]
