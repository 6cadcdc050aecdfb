"""Ids of padding, EOS and unknown text: 0, 1 and 2 here, as T5 has them.

Most pretrained vocabularies have other ids of padding and EOS. Then two pairs of ids are exchanged,
in texts (`text_tokenizer`) and in the rows of the weights (`checkpoints`).
"""

from __future__ import annotations

from sbs_jax.errors import UserError

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
"""Padding also starts the input of T5's decoder, which has no other start token."""
EOS_STRING = "</s>"
"""Within a text this means the token EOS, as it does to Hugging Face's T5 tokenizers: natural
language inference has it between premise and hypothesis."""


def moved_ids(pad_id: int, eos_id: int) -> dict[int, int]:
    """Returns the file's id of each of our ids that is another one: 0 is pad_id and 1 is eos_id.

    For example, with a vocabulary whose padding is 0 and whose EOS is 2:

        >>> moved_ids(0, 2)
        {1: 2, 2: 1}

    Args:
      pad_id: the file's id of padding.
      eos_id: the file's id of EOS, another one.
    """
    order = {number: number for number in (PAD_ID, EOS_ID, pad_id, eos_id)}
    for ours, theirs in ((PAD_ID, pad_id), (EOS_ID, eos_id)):
        place = next(number for number, there in order.items() if there == theirs)
        order[place], order[ours] = order[ours], theirs
    return {ours: theirs for ours, theirs in order.items() if ours != theirs}


def require_t5_ids(place: object, pad_id: int, eos_id: int, unk_id: int) -> None:
    """Checks the ids of a SentencePiece model.

    Raises:
      UserError: they are not T5's; names `place`.
    """
    if (pad_id, eos_id, unk_id) != (PAD_ID, EOS_ID, UNK_ID):
        raise UserError(
            f"{place}: has the ids pad={pad_id}, eos={eos_id}, unk={unk_id}, but T5 needs 0, 1 "
            "and 2."
        )
