"""Parsers of teacher completions: raw text of an LLM -> rationale and label.

A *completion* is what the teacher wrote after the few-shot prompt. It ends where its budget of
tokens ended, so it mostly runs on into a question of its own making: every parser first cuts there.
`tasks` and `teacher` both look parsers up here and never import one another. This module is a leaf.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from sbs_jax.errors import UserError


class ParsedCompletion(NamedTuple):
    """What a teacher's completion says; both texts are ``''`` when it does not parse.

    Attributes:
      rationale: the explanation in front of the answer sentence, stripped.
      label: the answer, in the form in which the data set writes its labels.
    """

    rationale: str
    label: str


UNPARSED = ParsedCompletion("", "")
"""The result of a completion in which no answer could be found."""


def parse_cqa(completion: str) -> ParsedCompletion:
    r"""Parses ``RATIONALE So the answer is (c) LABEL.`` (CommonsenseQA).

    The label is the text behind the first choice marker, up to a second marker if there is one, as
    in the published code (so ``either (a) ocean or (b) sea`` gives ``ocean or``, which is no
    choice: the teacher did not decide).

    >>> parse_cqa('A bum lives near one. So the answer is (c) train station.\n\nQ: What')
    ParsedCompletion(rationale='A bum lives near one.', label='train station')
    """
    rationale, answer = _split_at_answer(completion, "So the answer is")
    marked = re.split(r"\(.\)", answer)
    if len(marked) < 2:
        return UNPARSED
    return _exactly(rationale, marked[1].strip().removesuffix("."))


def parse_svamp(completion: str) -> ParsedCompletion:
    r"""Parses ``RATIONALE The answer is (84 / 2).`` (SVAMP: the answer is an expression).

    The label reaches from the first parenthesis of the answer to its last one in that line, both
    included, as in the published code; it need not be arithmetic that can be evaluated.

    >>> parse_svamp('84 / 2 = 42. The answer is (84 / 2).\n\nQ: There are 120')
    ParsedCompletion(rationale='84 / 2 = 42.', label='(84 / 2)')
    """
    rationale, answer = _split_at_answer(completion, "The answer is")
    found = re.search(r"\(.*\)", answer)
    return ParsedCompletion(rationale, found.group()) if found else UNPARSED


def parse_nli(completion: str) -> ParsedCompletion:
    r"""Parses ``RATIONALE So the answer is contradiction.`` (e-SNLI, ANLI).

    >>> parse_nli('A man sleeps. So the answer is Contradiction.\n\nPremise: A dog')
    ParsedCompletion(rationale='A man sleeps.', label='contradiction')
    """
    rationale, answer = _split_at_answer(completion.split("Premise:", 1)[0], "the answer is")
    found = re.match(r"\W*(entailment|neutral|contradiction)\b", answer, re.IGNORECASE)
    return ParsedCompletion(_without_so(rationale), found[1].lower()) if found else UNPARSED


def parse_esnli(completion: str) -> ParsedCompletion:
    r"""Parses ``RATIONALE\nAnswer: neutral`` (the release's e-SNLI).

    As in the published code, the label is all that stands between the first ``Answer: `` and the
    next ``Premise``, ``Answer: `` or end, and the rationale what stands before the first
    ``Answer:``, wherever a new premise begins.

    >>> parse_esnli('A nap is sleep.\nAnswer: entailment\n\nPremise: A dog runs.\nAnswer: neutral')
    ParsedCompletion(rationale='A nap is sleep.', label='entailment')
    """
    pieces = completion.split("Answer: ")
    if len(pieces) < 2:
        return UNPARSED
    return _exactly(_before_answer(completion), pieces[1].split("Premise", 1)[0].rstrip())


def parse_anli(completion: str) -> ParsedCompletion:
    r"""Parses ``RATIONALE So the answer is entailment.`` (the release's ANLI).

    As in the published code, the label lacks the last character of what stands before the next
    ``Premise:``, which is the full stop.

    >>> parse_anli('It was closed. So the answer is contradiction.\n\nPremise: The film')
    ParsedCompletion(rationale='It was closed.', label='contradiction')
    """
    pieces = _anli_pieces(completion)
    if len(pieces) != 2:
        return UNPARSED
    return _exactly(pieces[0].strip(), pieces[1].lstrip()[:-1])


def _before_answer(completion: str) -> str:
    return completion.split("Answer:", 1)[0].strip()


def _anli_pieces(completion: str) -> list[str]:
    return completion.split("Premise:", 1)[0].rstrip().split("So the answer is")


def _exactly(rationale: str, label: str) -> ParsedCompletion:
    """Returns what was found; `UNPARSED` where white space at an end of the label is left.

    The published code compares such a label as it stands, so that it is no answer there either
    (``Answer:  neutral``, ``neutral .``), while our scorers pass over white space.
    """
    return ParsedCompletion(rationale, label) if label and label == label.strip() else UNPARSED


def parse_gsm8k(completion: str) -> ParsedCompletion:
    r"""Parses ``RATIONALE The answer is 42.`` or, as GSM8K writes it, ``RATIONALE\n#### 42``.

    What follows the next ``Q:`` or ``Question:`` is not looked at. Of several sentences ``The
    answer is`` the last one counts: solutions also say ``the answer is`` of a step.

    >>> parse_gsm8k('He has 48/2 = <<48/2=24>>24 left.\n#### 24')
    ParsedCompletion(rationale='He has 48/2 = <<48/2=24>>24 left.', label='24')
    >>> parse_gsm8k('Of May the answer is 24. Together the answer is -$1,072.\n\nQ: 5?')
    ParsedCompletion(rationale='Of May the answer is 24. Together', label='-1072')
    """
    own = re.split(r"Q:|Question:", completion, maxsplit=1)[0]
    rationale, marker, answer = own.partition("####")
    if not marker:
        rationale, marker, answer = own.rpartition("he answer is")
        rationale = _without_so(rationale.strip(), "T", "t")
    found = _NUMBER.match(answer) if marker else None
    return ParsedCompletion(rationale.strip(), _digits(found)) if found else UNPARSED


def parse_yes_no(completion: str) -> ParsedCompletion:
    r"""Parses ``RATIONALE So the answer is yes.`` (StrategyQA).

    >>> parse_yes_no('Fish need water. So the answer is no.')
    ParsedCompletion(rationale='Fish need water.', label='no')
    """
    rationale, answer = _split_at_answer(completion, "the answer is")
    found = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    return ParsedCompletion(_without_so(rationale), found[1].lower()) if found else UNPARSED


def parse_number(completion: str) -> ParsedCompletion:
    r"""Parses ``RATIONALE The answer is 42.`` (GSM8K: the answer is a number).

    >>> parse_number('84 / 2 = 42. The answer is $1,042.50.')
    ParsedCompletion(rationale='84 / 2 = 42.', label='1042.50')
    """
    rationale, answer = _split_at_answer(completion, "he answer is")
    found = _NUMBER.match(answer)
    if not found:
        return UNPARSED
    return ParsedCompletion(_without_so(rationale, "T", "t"), _digits(found))


# The first number of an answer, with nothing but signs in front of it: `: **$1,042.50**`, `-$3`.
_NUMBER = re.compile(
    r"[^\w\n]*?(?P<minus>[-−]\s?)?[$€£]?\s?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![.\w])\.\d+)"
)


def _digits(number: re.Match[str]) -> str:
    digits = number["digits"].replace(",", "")
    return f"-{digits}" if number["minus"] else digits


def parse_text(completion: str) -> ParsedCompletion:
    r"""Parses ``RATIONALE The answer is LABEL.``: the rest of the line, without its full stop.

    >>> parse_text('Reverse the letters. The answer is c b a.')
    ParsedCompletion(rationale='Reverse the letters.', label='c b a')
    """
    rationale, answer = _split_at_answer(completion, "The answer is")
    label = answer.partition("\n")[0].strip().removesuffix(".").strip()
    return ParsedCompletion(rationale, label) if label else UNPARSED


def kept_rationale(parser: Callable[[str], ParsedCompletion], completion: str) -> str:
    """Returns the rationale that the published code trains, whether or not it finds a label.

    A completion without a label explains nothing that can be checked, so that our parsers give no
    rationale for it either. The published code keeps the text before the answer sentence: all of
    the text where e-SNLI's completions have no answer, and ``''`` where those of the other data
    sets have none. `DataSettings.keep_blank_rationales` asks for this.

    Args:
      parser: a function of this module; ``''`` is returned for one that the published code lacks.
      completion: the teacher's text.

    >>> kept_rationale(parse_svamp, 'She has 84 / 2 = 42. The answer is 42.')
    'She has 84 / 2 = 42.'
    """
    if parser is parse_cqa:
        return _split_at_answer(completion, "So the answer is")[0]
    if parser is parse_svamp:
        return _split_at_answer(completion, "The answer is")[0]
    if parser is parse_esnli:
        return _before_answer(completion)
    if parser is parse_anli:
        pieces = _anli_pieces(completion)
        return pieces[0].strip() if len(pieces) == 2 else ""
    return ""


def _first(pattern: str) -> Callable[[str], ParsedCompletion]:
    """Returns a parser of a bare answer, as the second call of zero-shot gives it.

    The label is the first match of `pattern` (its group 1), in lower case and without commas; what
    stands around it is no rationale (that was the first call's).
    """
    compiled = re.compile(pattern, re.IGNORECASE)

    def parse(completion: str) -> ParsedCompletion:
        found = compiled.search(completion)
        return ParsedCompletion("", found[1].lower().replace(",", "")) if found else UNPARSED

    return parse


def _without_so(rationale: str, *first: str) -> str:
    """Drops the first words of an answer sentence, when the marker began behind them.

    These are one of `first`, if it is there, and then one of ``So`` and ``Therefore,``.
    """
    for words in (first, ("So", "Therefore,")):
        for word in words:
            before = rationale.removesuffix(word)
            if before != rationale and (not before or before[-1].isspace()):
                rationale = before.rstrip()
                break
    return rationale


def _split_at_answer(completion: str, marker: str) -> tuple[str, str]:
    """Returns what stands before and after `marker`, once the next question is cut off.

    A completion without the marker, or with several (which of them is the answer?), gives two
    empty strings.
    """
    own = completion.split("Q:", 1)[0]
    pieces = own.split(marker)
    if len(pieces) != 2:
        return "", ""
    return pieces[0].strip(), pieces[1].strip()


PARSERS: dict[str, Callable[[str], ParsedCompletion]] = {
    "cqa": parse_cqa,
    "svamp": parse_svamp,
    "nli": parse_nli,
    "esnli": parse_esnli,
    "anli": parse_anli,
    "gsm8k": parse_gsm8k,
    "yes_no": parse_yes_no,
    "number": parse_number,
    "text": parse_text,
    # Answers alone:
    "first_number": _first(r"(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)"),
    "first_nli": _first(r"\b(entailment|neutral|contradiction)\b"),
    "first_yes_no": _first(r"\b(yes|no)\b"),
}
"""Parsers by name; the name is what gin files and teacher configurations give."""


def find_parser(name: str) -> Callable[[str], ParsedCompletion]:
    """Returns the parser of that name.

    Raises:
      UserError: there is none; the sentence names those that there are.
    """
    if name not in PARSERS:
        raise UserError(
            f"There is no parser {name!r}; sbs_jax/parsers.py has {', '.join(PARSERS)}."
        )
    return PARSERS[name]
