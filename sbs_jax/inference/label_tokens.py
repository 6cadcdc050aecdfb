"""Which tokens of an answer are its label's, in answers that also hold a rationale."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

from sbs_jax.inference.prompting import Prompting
from sbs_jax.inference.tokenizer import EOS_ID, SentencePieceTokenizer
from sbs_jax.text_tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True)
class LabelTokens:
    """Finds the label in the tokens of an answer.

    Attributes:
      tokenizer: the student's vocabulary.
      prompting: how the student is asked, and what its answers consist of.
    """

    tokenizer: SentencePieceTokenizer | TextTokenizer
    prompting: Prompting

    @property
    def ending(self) -> tuple[int, ...]:
        """The tokens that end a label: EOS, or those of what stands between it and more text."""
        behind = self.prompting.behind_label
        # A space at its end belongs to the first token of what follows.
        return tuple(self.tokenizer.encode(behind.rstrip(" "))) if behind else (EOS_ID,)

    def behind(self, rationale: str, label: str) -> tuple[int, ...]:
        """Returns the tokens of an answer that gives `label` after `rationale`."""
        text = rationale + self.prompting.separator + label
        return (*self.tokenizer.encode(text), *self.ending)

    def start(self, ids: Sequence[int]) -> int:
        """Returns how many tokens an answer has up to the end of the last separator of a label."""
        separator = self.prompting.separator.strip()

        def count(end: int) -> int:
            return self.tokenizer.decode(ids[:end]).count(separator)

        return bisect.bisect_left(range(len(ids)), count(len(ids)), key=count)

    def end(self, ids: Sequence[int], start: int) -> int:
        """Returns how many tokens an answer has up to the end of its label and of what ends it.

        Args:
          ids: the answer.
          start: the position at which the label starts.
        """
        behind = self.prompting.behind_label.strip()
        if not behind:
            return len(ids)
        ends = range(start + 1, len(ids))
        # What has been written stays there as more is written.
        found = bisect.bisect_left(
            ends, True, key=lambda end: behind in self.tokenizer.decode(ids[start:end])
        )
        return ends[found] if found < len(ends) else len(ids)
