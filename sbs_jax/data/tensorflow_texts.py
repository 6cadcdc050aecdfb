"""Encodes and decodes texts within TensorFlow's graphs, for SeqIO's and T5X's own programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from sbs_jax.data.dataset_vocabulary import DatasetVocabulary
from sbs_jax.data.tensorflow_setup import seqio, tf
from sbs_jax.data.vocabulary import TokenizerVocabulary, Vocabulary
from sbs_jax.token_ids import EOS_ID, EOS_STRING, PAD_ID

# SeqIO and T5X may ask whether it is one.
seqio.Vocabulary.register(Vocabulary)


# AutoGraph would rewrite all that `resolve` calls, gin and the training included.
@tf.autograph.experimental.do_not_convert
def encode(vocabulary: Vocabulary, texts: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
    """Returns the ids of a text [T], or of N texts [N, None] as a ragged tensor, without EOS.

    `EOS_STRING` within a text becomes EOS where the vocabulary is a data set's.
    """
    texts = tf.convert_to_tensor(texts)
    if not isinstance(vocabulary, DatasetVocabulary):
        return _encode_plain(vocabulary, texts)
    if texts.shape.rank == 0:
        return _encode_many(vocabulary, texts[None]).values
    if texts.shape.rank == 1:
        return _encode_many(vocabulary, texts)
    return _encode_plain(vocabulary.resolve(), texts)


def _encode_plain(vocabulary: Vocabulary, texts: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
    if not isinstance(vocabulary, TokenizerVocabulary):
        return _tokenizer(vocabulary).tokenize(texts)

    def flat(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        encoded = vocabulary.tokenizer.encode([value.decode("utf-8") for value in values])
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        return np.array([token for ids in encoded for token in ids], np.int32), lengths

    values, lengths = tf.numpy_function(
        flat, [tf.reshape(texts, [-1])], (tf.int32, tf.int64), stateful=False
    )
    values, lengths = tf.ensure_shape(values, [None]), tf.ensure_shape(lengths, [None])
    ragged = tf.RaggedTensor.from_row_lengths(values, lengths, validate=False)
    return ragged.values if texts.shape.rank == 0 else ragged


def _encode_many(vocabulary: DatasetVocabulary, texts: tf.Tensor) -> tf.RaggedTensor:
    """Returns ids [N, None] of texts [N], `EOS_STRING` within them being EOS."""
    pieces = tf.strings.split(texts, EOS_STRING)
    ids = _encode_plain(vocabulary.resolve(), pieces.values)
    # EOS behind each piece, and away again behind the last one of each text.
    ends = tf.fill([tf.size(pieces.values), 1], tf.constant(EOS_ID, ids.dtype))
    ids = tf.concat([ids, ends], axis=1)
    lengths = tf.reduce_sum(pieces.with_values(ids.row_lengths()), axis=1)
    return tf.RaggedTensor.from_row_lengths(ids.values, lengths, validate=False)[:, :-1]


@tf.autograph.experimental.do_not_convert
def decode(vocabulary: Vocabulary, ids: tf.Tensor) -> tf.Tensor:
    """Returns the text of ids [T], or the texts [N] of ids [N, T], up to the first EOS.

    Raises:
      NotImplementedError: the vocabulary is a `tokenizer.json`.
    """
    ids = tf.convert_to_tensor(ids)
    if isinstance(vocabulary, DatasetVocabulary):
        vocabulary = vocabulary.resolve()
    if isinstance(vocabulary, TokenizerVocabulary):
        raise NotImplementedError("texts are decoded outside of TensorFlow")
    known = tf.where(ids < vocabulary.vocab_size, ids, vocabulary.unk_id)
    ended = tf.cumsum(tf.cast(known == EOS_ID, tf.int32), exclusive=True, axis=-1)
    return _tokenizer(vocabulary).detokenize(tf.where(ended > 0, PAD_ID, known))


def _tokenizer(vocabulary: Any) -> Any:
    import tensorflow_text

    return tensorflow_text.SentencepieceTokenizer(model=vocabulary.sp_model)
