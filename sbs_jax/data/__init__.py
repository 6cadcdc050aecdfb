"""Tasks, their examples, tokenized records and batches.

The modules, in the order in which an example passes through them:

    settings                                     what a user may set, in one dataclass
    rows, release, pieces, sources               rows and examples of files; public data sets
    rationale_file, rationales                   what a teacher wrote, joined to the examples
    datasets, registration, registry             data sets and their tasks
    choosing, resolving                          the task that a user names
    elements, record_texts, token_weights        what a task trains of an example, as texts
    vocabulary, dataset_vocabulary               what encodes texts
    sentencepiece_training                       trains the vocabulary of a data set
    reading, tokenizing, records, ragged         texts become tokens in flat arrays: records
    stored_records, record_files                 records that are kept in files
    first_pass, piece_worker                     records of large splits, made in pieces
    pipeline                                     the way from a task to its records, in one call
    epochs, permutations, example_stream         the order of examples
    auto_lengths, packing, batch_arrays          rows: their lengths, what lies in them, the arrays
    row_batches, padding_free, batching          batches of rows, and without rows
    eval_examples                                what evaluation reads

These import no TensorFlow. SeqIO's own programs, caches and tasks need it:

    tensorflow_setup, tensorflow_texts           TensorFlow and SeqIO, imported quietly
    seqio_tasks, preprocessors                   our tasks in SeqIO's registry
    seqio_reading                                tasks of others, read through SeqIO
    caching, cache_writer, feature_converter     SeqIO's cache; features as T5X reads them
"""

import os as _os

# TensorFlow reads these when its library is loaded, so they are set before any module of this
# package (or of the user's, imported later) can load it. A value of the user's own stays.
_os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
_os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
