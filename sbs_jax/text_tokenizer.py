"""Tokenizers of pretrained decoders: a `tokenizer.json`, or the one inside a GGUF file.

`TextTokenizer` gives a student's tokens. Padding is 0 and EOS is 1 in this package, as T5 has them;
most pretrained tokenizers have other ids, so ids are exchanged, here and in the rows of the weights
(`token_ids.moved_ids`). Neither jax nor TensorFlow is imported; gguf and jinja2 only once a file
needs them, because every program that has a vocabulary imports this module.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from sbs_jax import remote, remote_copies
from sbs_jax.errors import UserError
from sbs_jax.json_files import optional_json
from sbs_jax.token_ids import EOS_ID, EOS_STRING, moved_ids

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


def is_tokenizer(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a tokenizer of this kind, and not a SentencePiece model."""
    return Path(path).suffix in (".json", ".gguf")


def default_frame(path: str | os.PathLike[str], *, chat: bool = False) -> tuple[str, str]:
    """`TextTokenizer.frame` of a file; nothing for a SentencePiece model.

    Raises:
      UserError: there is no chat template.
    """
    if is_tokenizer(path):
        return TextTokenizer(path).frame(chat=chat)
    if chat:
        raise UserError(f"{path}: CHAT = True needs a pretrained tokenizer with a chat template.")
    return "", ""


class GGUFVocabulary(NamedTuple):
    """A tokenizer as GGUF files describe it.

    Attributes:
      pre: the name of the pre-tokenizer.
      tokens: the text of each token, by id.
      types: the type of each token, `gguf.TokenType`.
      merges: pairs of tokens, joined by a space, the first ones first.
    """

    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]


class TextTokenizer:
    """Text to tokens and back, without special tokens unless the text names them.

    Attributes:
      path: the file.
      pad_id: the file's id of what is 0 here: a token that occurs in no text.
      eos_id: the file's id of what is 1 here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads `tokenizer.json`, with `tokenizer_config.json` beside it, or a GGUF file.

        Raises:
          UserError: The file cannot be read, or does not say which token ends a text.
        """
        from sbs_jax import chat_templates

        if remote.is_remote(path):
            path = remote_copies.local(path, beside=(CONFIG_FILE, chat_templates.FILE))
        self.path = os.fspath(path)
        file = Path(path).expanduser()
        if file.suffix == ".gguf":
            meta = _metadata(file)
            self._tokenizer = from_gguf(meta, file)
            named = {
                "eos": chat_templates.gguf_token(meta, "eos"),
                "pad": chat_templates.gguf_token(meta, "padding"),
            }
        else:
            self._tokenizer = from_json(file)
            settings = optional_json(file.parent / CONFIG_FILE)
            content_of = chat_templates.content_of
            named = {name: content_of(settings.get(f"{name}_token")) for name in ("eos", "pad")}
        eos = self._tokenizer.token_to_id(named["eos"]) if named["eos"] else None
        if eos is None:
            raise UserError(
                f"{self.path}: it is not said which token ends a text; {CONFIG_FILE} beside it "
                "must have an eos_token of the vocabulary."
            )
        self.eos_id = eos
        self.pad_id = _padding(self._tokenizer, eos, named["pad"], self.path)
        self._theirs = moved_ids(self.pad_id, self.eos_id)
        self._ours = {theirs: ours for ours, theirs in self._theirs.items()}

    def frame(self, *, chat: bool = False) -> tuple[str, str]:
        """Returns what stands before and after an input, as the model was taught.

        Args:
          chat: put the input into the model's chat template, as the only message of a user, up to
            where the model answers. Otherwise only the token stands before it, if any, that the
            tokenizer puts in front of every text (Llama, Gemma).

        Raises:
          UserError: there is no chat template.
        """
        file = Path(self.path).expanduser()
        of_gguf = file.suffix == ".gguf"
        if chat:
            from sbs_jax.chat_templates import ChatTemplate

            if of_gguf:
                return ChatTemplate.of_gguf(_metadata(file), file).frame()
            return ChatTemplate.of_folder(file.parent).frame()
        if of_gguf:
            meta = _metadata(file)
            begin = meta.get("tokenizer.ggml.bos_token_id")
            added = meta.get("tokenizer.ggml.add_bos_token", False) and begin is not None
            return (meta["tokenizer.ggml.tokens"][begin] if added else "", "")
        ids = self._tokenizer.encode("a").ids
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        special = self._tokenizer.get_added_tokens_decoder()
        at = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
        begins = [special[number].content for number in ids[:at] if number in special]
        return "".join(begins), ""

    @functools.cached_property
    def size(self) -> int:
        """Number of ids."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without EOS at the end."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of many texts; see `encode`."""
        # Half of a surrogate pair, as JSON may escape it, is no text that UTF-8 could hold.
        pieces = [t.encode("utf-8", "replace").decode("utf-8").split(EOS_STRING) for t in texts]
        flat = [part for parts in pieces for part in parts]
        encoded = iter(self._tokenizer.encode_batch(flat, add_special_tokens=False))
        result = []
        for parts in pieces:
            ours = ([self._ours.get(i, i) for i in next(encoded).ids] for _ in parts)
            first, *others = ours
            result.append(first + [token for ids in others for token in (EOS_ID, *ids)])
        return result

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of `tokens` up to the first EOS, without special tokens."""
        ids = []
        for token in map(int, tokens):
            if token == EOS_ID:
                break
            ids.append(self.id_in_file(token))
        # Rows of an embedding that is larger than the vocabulary stand for nothing.
        return self._tokenizer.decode([number for number in ids if number < self.size])

    def pieces(self, tokens: Sequence[int]) -> list[tuple[str, int]]:
        """Cuts tokens into what can be shown.

        Returns:
          Pairs of a text and how many tokens it stands for: one, but for the bytes of a character
          that several tokens spell. Joined, the texts are what the student reads.
        """
        shown: list[tuple[str, int]] = []
        run: list[int] = []
        for token in map(int, tokens):
            run.append(self.id_in_file(token))
            text = self._tokenizer.decode(run, skip_special_tokens=False)
            if not text.endswith("\ufffd") or len(run) == 4:
                shown.append((text, len(run)))
                run = []
        if run:
            shown.append((self._tokenizer.decode(run, skip_special_tokens=False), len(run)))
        return shown

    def id_in_file(self, token: int) -> int:
        """Returns a token's id in the file's own numbering; see `moved_ids`."""
        return self._theirs.get(token, token)

    def id_to_piece(self, token: int) -> str:
        """Returns the vocabulary's own spelling of a token."""
        return self._tokenizer.id_to_token(self.id_in_file(token)) or "⁇"

    def serialized(self) -> bytes:
        """Returns the whole tokenizer as the bytes of a `tokenizer.json`."""
        return self._tokenizer.to_str().encode()

    def for_gguf(self) -> GGUFVocabulary | None:
        """What GGUF files say of a byte-level BPE; None where they have no name for this one."""
        content = json.loads(self._tokenizer.to_str())
        model, own = content["model"], _steps(content["pre_tokenizer"])
        known = {
            name: _steps(json.loads(_pre_tokenizer(name).__getstate__().decode())) for name in _PRE
        }
        found = [name for name, steps in known.items() if steps == own]
        if model["type"] != "BPE" or not found or content.get("normalizer") is not None:
            return None
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
            return None  # ids that no token has
        types = dict.fromkeys(tokens, _NORMAL)
        for token in content["added_tokens"]:
            types[token["content"]] = _CONTROL if token["special"] else _USER_DEFINED
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return GGUFVocabulary(found[0], tokens, [types[token] for token in tokens], merges)

    def config_text(self) -> str:
        """Returns the text of a `tokenizer_config.json` that says the special tokens."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self._tokenizer.id_to_token(self.eos_id),
            "pad_token": self._tokenizer.id_to_token(self.pad_id),
            "clean_up_tokenization_spaces": False,
        }
        return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def _metadata(file: Path) -> dict[str, Any]:
    """The metadata of a GGUF file."""
    from sbs_jax.gguf_files import GGUFFile

    return GGUFFile(file).metadata


def from_json(path: Path) -> tokenizers.Tokenizer:
    """Reads a `tokenizer.json`.

    Raises:
      UserError: It cannot be read.
    """
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"{path}: not a tokenizer ({error}).") from error


def from_gguf(meta: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    """Builds the tokenizer that a GGUF file's metadata describe.

    Raises:
      UserError: It is of a kind that the metadata do not describe whole.
    """
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "default")
    if pre == "gpt-2":
        pre = "default"
    if kind != "gpt2":
        raise UserError(
            f"{path}: its tokenizer is of kind {kind!r}, of which a GGUF file does not hold the "
            "merges; use the Hugging Face folder of this model."
        )
    if pre not in _PRE:
        raise UserError(
            f"{path}: its pre-tokenizer {pre!r} is not known here (known are "
            f"{', '.join(_PRE)}); use the Hugging Face folder of this model."
        )
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe")
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, meta.get("tokenizer.ggml.token_type", ()), strict=False):
        if token_type in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, normalized=False, special=token_type == _CONTROL)
            if token_type == _CONTROL:
                tokenizer.add_special_tokens([added])
            else:
                tokenizer.add_tokens([added])
    return tokenizer


_PRE = ("smollm", "llama-bpe", "qwen2", "default")
"""The pre-tokenizers that are known here, by their names in GGUF files; `default` is GPT-2's."""


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    splitters: dict[str, list[Any]] = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "llama-bpe": [_split(_LLAMA3)],
        "qwen2": [_split(_QWEN2)],
        "default": [],
    }
    # With a splitter of its own, the byte-level step only maps bytes.
    byte_level = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=name not in ("llama-bpe", "qwen2")
    )
    return pre_tokenizers.Sequence([*splitters[name], byte_level])


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a serialized pre-tokenizer, without what does not change tokens."""
    if pre_tokenizer is None:
        return []
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return [{name: value for name, value in s.items() if name != "trim_offsets"} for s in steps]


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


def _padding(tokenizer: tokenizers.Tokenizer, eos: int, named: str | None, path: str) -> int:
    """Chooses a token that occurs in no text.

    It is id 0 if that is special, else the padding token unless that is EOS, else the last special
    token.
    """
    special = {
        number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special
    } - {eos}
    if 0 in special:
        return 0
    if named and (number := tokenizer.token_to_id(named)) in special:
        return number
    if not special:
        raise UserError(
            f"{path}: besides EOS it has no special token, which could serve as padding; add one."
        )
    return max(special)  # reserved ones come last
