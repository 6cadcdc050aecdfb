"""Batches without rows: the tokens of many examples lie one behind another.

Sequences of one data set differ in length, so rows of one length hold padding even when they are
packed, and attention is computed between all places of a row, most of which belong to different
records. A padding-free batch avoids both. It has G groups (one for each device along `data` and
each microbatch), and a group is one long row of N input tokens and M target tokens, of which the
last one is always padding and few others are. Everything but attention is computed on these tokens
as they lie. For attention alone, tables say which tokens form rows that are only as long as the
records are: each group has rows of a few kinds, that is of a few lengths S and T.

Besides the arrays of `data.batch_arrays`, whose shapes are [G, N] and [G, M] here and whose
segments are numbered within their group, a batch has for each kind of row, from 0,

    encoder_rows_0   [G, R, S]  the token at each place of the rows of kind 0, N - 1 at empty places
    decoder_rows_0   [G, R, T]  the same of targets; rows of one number hold the same records

`sbs_jax.models.attention_rows` reads them. The modules, from the ground up:

    sizes      N, M and the kinds of rows of a group, and the shapes of the arrays
    groups     divides examples among groups, places records in them, and writes the arrays
    proposal   chooses the sizes from the records of a training split
    batches    makes batch after batch, of equally many tokens or of equally many examples

All sizes follow from the records, so a resumed run has the same ones; batches that have no room in
the usual sizes get larger ones.
"""
