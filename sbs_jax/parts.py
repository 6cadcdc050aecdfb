"""The two parts of a step-by-step target, and the task prefixes that ask for them.

A *part* says which of the two losses a target token belongs to (Hsieh et al. 2023, Eq. 3). This
module is a leaf: everything may import it, it imports nothing.
"""

PADDING = 0
"""Part code of a padding token: it belongs to neither loss."""

LABEL = 1
"""Part code of a token of the label (answer), its EOS included."""

RATIONALE = 2
"""Part code of a token of the rationale (explanation), its EOS included."""

METHODS = ("sbs", "standard", "joint", "rationale_input", "rationale")
"""Names of the methods: which parts a student learns, and in what form (docs/methods.md)."""

PART_NAMES = {LABEL: "label", RATIONALE: "rationale"}

DEFAULT_LABEL_PREFIX = "predict: "
"""Prefix of the published code; the paper's own is ``[label] ``."""

DEFAULT_RATIONALE_PREFIX = "explain: "
"""Prefix of the published code; the paper's own is ``[rationale] ``."""
