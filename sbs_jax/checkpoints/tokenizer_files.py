"""Tokenizer files of Hugging Face, made of a SentencePiece model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from sbs_jax.errors import UserError
from sbs_jax.token_ids import require_t5_ids

_UNIGRAM, _BPE = 1, 2
_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "▁"


def read_sentencepiece(path: Path) -> sentencepiece_pb.ModelProto:
    """Reads a SentencePiece model.

    Raises:
      UserError: it cannot be read, or has other ids than T5's: padding 0, EOS 1, unknown 2.
    """
    proto = sentencepiece_pb.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        if not proto.pieces:
            raise ValueError("it has no pieces")
    except (OSError, ValueError, DecodeError) as error:
        raise UserError(f"{path}: is no SentencePiece model that can be read ({error}).") from None
    spec = proto.trainer_spec
    require_t5_ids(path, spec.pad_id, spec.eos_id, spec.unk_id)
    return proto


def build_tokenizer(
    proto: sentencepiece_pb.ModelProto, *, add_eos: bool = True
) -> tokenizers.Tokenizer:
    """Builds the tokenizer that encodes as SentencePiece does, with EOS at the end.

    As in every tokenizer of T5, the names of special tokens within a text (`</s>`) mean these
    tokens.

    Args:
      proto: a unigram or a BPE model.
      add_eos: whether EOS ends a text; what a decoder-only model continues has none.

    Returns:
      For `tokenizer.json`.

    Raises:
      UserError: the model is of another type.
    """
    tokenizer = tokenizers.Tokenizer(_model(proto))
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    scheme = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme=scheme, split=True
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            *([decoders.ByteFallback()] if proto.trainer_spec.byte_fallback else []),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    pieces = [piece.piece for piece in proto.pieces]
    unknown, eos = pieces[proto.trainer_spec.unk_id], pieces[proto.trainer_spec.eos_id]
    tokenizer.add_special_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=True)
            for piece in proto.pieces
            if piece.type == _CONTROL or piece.piece == unknown
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=False)
            for piece in proto.pieces
            if piece.type == _USER_DEFINED
        ]
    )
    if add_eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", eos],
            pair=["$A", eos, "$B", eos],
            special_tokens=[(eos, proto.trainer_spec.eos_id)],
        )
    return tokenizer


def tokenizer_files(
    proto: sentencepiece_pb.ModelProto, *, max_length: int | None, add_eos: bool = True
) -> dict[str, str]:
    """The text of each of Hugging Face's tokenizer files.

    Args:
      proto: the result of `read_sentencepiece`.
      max_length: tokens of an input, as far as known.
      add_eos: see `build_tokenizer`.

    Returns:
      By name: `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`.
    """
    names = [piece.piece for piece in proto.pieces[:3]]
    special = {"pad_token": names[0], "eos_token": names[1], "unk_token": names[2]}
    config: dict[str, Any] = {
        # Not T5Tokenizer: that of transformers 5 makes a model of its own out of the pieces, which
        # spells nothing by bytes.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }
    if max_length is not None:
        config["model_max_length"] = max_length
    return {
        "tokenizer.json": build_tokenizer(proto, add_eos=add_eos).to_str(pretty=False) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2, ensure_ascii=False) + "\n",
    }


def _model(proto: sentencepiece_pb.ModelProto) -> models.Model:
    spec = proto.trainer_spec
    scored = [(piece.piece, piece.score) for piece in proto.pieces]
    if spec.model_type == _UNIGRAM:
        return models.Unigram(scored, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    if spec.model_type == _BPE:
        return models.BPE(
            vocab={piece: number for number, (piece, _) in enumerate(scored)},
            merges=_merges(proto),
            unk_token=scored[spec.unk_id][0],
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )
    raise UserError(
        f"The SentencePiece model has the type {spec.model_type}; a tokenizer.json can be made of "
        "unigram (1) and BPE (2) models."
    )


def _merges(proto: sentencepiece_pb.ModelProto) -> list[tuple[str, str]]:
    """The merges that SentencePiece's BPE does implicitly: any two pieces that make a third one.

    The better the piece's score, the earlier.
    """
    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == 1}
    order = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    found = []
    for piece, score in normal.items():
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [pair for pair in halves if pair[0] in normal and pair[1] in normal]
        found += [(-score, order[left], order[right], (left, right)) for left, right in pairs]
    return [pair for *_, pair in sorted(found)]


def _normalizer(spec: sentencepiece_pb.NormalizerSpec) -> normalizers.Normalizer | None:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(True, True)]
    return normalizers.Sequence(steps) if steps else None
