"""What `python -m sbs_jax.infer --interactive` reads and shows at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from sbs_jax.errors import UserError
from sbs_jax.inference.answers import Saliency
from sbs_jax.inference.predictor import Predictor

_FOR, _AGAINST = (0, 140, 70), (190, 40, 40)  # background colours at full strength
_NAMED = 5  # pieces that are named where there are no colours


def highlight(saliency: Saliency) -> Text:
    """The input, its pieces coloured by their scores."""
    largest = max((abs(score) for score in saliency.scores), default=0.0) or 1.0
    text = Text()
    for piece, score in zip(saliency.pieces, saliency.scores, strict=True):
        share = abs(score) / largest
        color = ",".join(str(round(share * part)) for part in (_FOR if score > 0 else _AGAINST))
        # Faint colours would be specks on the terminal's own background.
        text.append(piece, style=f"bold white on rgb({color})" if share >= 0.1 else "")
    return text


def name_strongest(saliency: Saliency) -> str:
    """The pieces with the largest scores, in words."""
    order = sorted(range(len(saliency.scores)), key=lambda i: -abs(saliency.scores[i]))
    named = [f"{saliency.pieces[i].strip()!r} {saliency.scores[i]:+.3f}" for i in order]
    return ", ".join(named[:_NAMED])


def answer(console: Console, predictor: Predictor, line: str, explain: bool, num_best: int) -> None:
    """Prints the label of one input, its rationale, and which pieces of the input mattered."""
    prediction = predictor.labels([line], num_best=num_best)[0]
    rationale = prediction.rationale
    if explain and rationale is None:
        rationale = predictor.rationales([line])[0].text
    # A joint student's label follows from its rationale: the whole answer counts there.
    label = None if predictor.prompting.is_joint else prediction.label
    saliency = predictor.saliency(line, label, rationale=prediction.rationale or "")

    def show(name: str, what: Text) -> None:
        console.print(Text.assemble((f"{name:<12}", "dim"), what), soft_wrap=True)

    if console.is_terminal:
        show("input", highlight(saliency))
    show("label", Text(f"{prediction.label}  ({prediction.confidence:.1%})", style="bold"))
    for other, confidence in prediction.alternatives[1:]:
        show("", Text(f"{other}  ({confidence:.1%})"))
    if rationale is not None:
        show("rationale", Text(rationale))
    if not console.is_terminal:
        show("mattered", Text(name_strongest(saliency)))
    if prediction.truncated:
        show("note", Text("the input was cut to fit", style="yellow"))


def read_lines(console: Console) -> Iterator[str]:
    """Lines typed at a terminal, or piped; blank ones are passed over."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        import readline  # noqa: F401 (gives `input` its line editing)
    while True:
        try:
            line = input("input> ") if at_terminal else next(sys.stdin, None)
        except EOFError:
            console.print()
            return
        except UnicodeDecodeError:
            raise UserError("Standard input is not UTF-8 text.") from None
        if line is None:
            return
        if line.strip():
            yield line.strip()
