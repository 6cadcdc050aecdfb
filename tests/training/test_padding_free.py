"""Padding-free batches train as batches of rows do."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from sbs_jax.data.batching import Batching, TrainBatches
from sbs_jax.data.padding_free.groups import GroupMaker, split
from sbs_jax.data.padding_free.sizes import Sizes
from sbs_jax.errors import UserError
from sbs_jax.models.dropout import random_mask, seed_of_kind
from sbs_jax.partitioning.distributed import to_global
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student
from sbs_jax.training import optimizers, placement
from sbs_jax.training.step import Loss, make_train_step
from tests.data.synthetic import make_records, unpack
from tests.toy import CONFIG, DECODER, LAYERS

LENGTHS = {"inputs": 64, "targets": 56}


def records_of(**options):
    """Records of few enough tokens for the toy networks, of very different lengths."""
    records = make_records(examples=40, inputs=60, targets=50, **options)
    return dataclasses.replace(
        records,
        input_tokens=2 + records.input_tokens % 60,
        target_tokens=2 + records.target_tokens % 60,
    )


RECORDS = records_of()
SHARED = records_of(records_of=lambda index: (1, 1, 3)[index % 3])
SHARED = dataclasses.replace(
    SHARED,
    source=SHARED.example.astype(np.int64),
    # Records of one example have the same inputs.
    input_tokens=2
    + (
        np.arange(SHARED.input_tokens.size)
        - np.repeat(SHARED.input_offsets[:-1], SHARED.input_lengths)
        + 7 * np.repeat(SHARED.example, SHARED.input_lengths)
    ).astype(np.int32)
    % 60,
)
WEIGHED = dataclasses.replace(
    RECORDS,
    target_weights=1 + np.arange(RECORDS.target_tokens.size, dtype=np.float32) % 3,
)

RATE = 1e3  # so large that parameters after the step tell the gradients to all digits

NETWORKS = {
    "T5": (CONFIG, RECORDS),
    "T5, inputs shared": (CONFIG, SHARED),
    "T5, scanned, positions by layer, weighed": (
        dataclasses.replace(LAYERS, scan_layers=True, relative_attention_per_layer=True),
        WEIGHED,
    ),
    "decoder": (DECODER, SHARED),
    "decoder, local layers, QK-norm, recomputed": (
        dataclasses.replace(
            DECODER, num_layers=2, qk_norm=True, post_norms=True, sliding_window=4,
            full_attention_every=2, remat="full",
        ),
        RECORDS,
    ),
}  # fmt: skip


def batches(records, groups=1, **options):
    options = {"examples_per_batch": 20, "padding_free": True} | options
    return TrainBatches(records, Batching(LENGTHS, **options), seed=3, row_multiple=groups)


def trained(config, batch, mesh=None, *, num_microbatches=1, dropout=False, **options):
    """Gradients of a batch by name, which a step of plain gradient descent tells; and metrics."""
    if not dropout:
        config = dataclasses.replace(config, dropout_rate=0.0)
    student = Student(config, mesh or make_mesh(devices=jax.devices()[:1]))
    optimizer = optimizers.sgd(RATE)
    step = make_train_step(
        student.hidden,
        optimizer,
        Loss(rationale_weight=0.7, **options),
        head=student.head,
        num_microbatches=num_microbatches,
    )
    jitted = placement.jit_train_step(
        student, step, placement.abstract_state(student, optimizer, 0)
    )
    state = placement.create_state(student, student.init_params(0), optimizer, 0)
    before = jax.device_get(state.params)
    state, metrics = jitted(state, to_global(batch, student.mesh))
    gradients = jax.tree.map(
        lambda old, new: (old - new) / RATE, before, jax.device_get(state.params)
    )
    return gradients, {name: float(value) for name, value in metrics.items()}


def assert_equal(ours, reference):
    """Loss and counts to 2e-6, gradients to 1e-5 of the largest entry of each array."""
    for name, value in reference[1].items():
        assert ours[1][name] == pytest.approx(value, rel=2e-6, abs=1e-6), name
    for mine, theirs in zip(*map(jax.tree.leaves, (ours[0], reference[0])), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max() + 1e-8)


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradients_are_those_of_rows(name):
    config, records = NETWORKS[name]
    free = next(batches(records))
    kinds = sum(name.startswith("encoder_rows") for name in free)
    assert kinds > 1  # rows of several lengths
    rows = next(batches(records, padding_free=False))
    assert_equal(trained(config, free), trained(config, rows))


def test_example_means_are_those_of_rows():
    free, rows = next(batches(WEIGHED)), next(batches(WEIGHED, padding_free=False))
    options = {"normalization": "example_mean", "label_smoothing": 0.1, "z_loss": 1e-3}
    assert_equal(trained(CONFIG, free, **options), trained(CONFIG, rows, **options))


def test_neither_groups_nor_microbatches_nor_devices_matter():
    whole = trained(CONFIG, next(batches(SHARED)))
    cut = next(batches(SHARED, 4))
    assert cut["encoder_segment_ids"].shape[0] == 4
    assert_equal(trained(CONFIG, cut, num_microbatches=2), whole)
    assert_equal(trained(CONFIG, cut, make_mesh(4, 2)), whole)
    decoder = trained(DECODER, next(batches(SHARED)))
    assert_equal(trained(DECODER, cut, make_mesh(devices=jax.devices()[:4])), decoder)


def test_padding_takes_no_part():
    """Neither more of it nor what it holds changes anything."""
    maker = batches(SHARED)
    batch = next(maker)
    real = {side: batch[f"{side}_segment_ids"] > 0 for side in ("encoder", "decoder")}
    noise = {
        name: np.where(real[name[:7]], array, 5) if name.endswith("_tokens") else array
        for name, array in batch.items()
    }
    for config in (CONFIG, DECODER):
        assert_equal(trained(config, noise), trained(config, batch))


def test_dropout_drops_by_kind_of_row():
    seed = jax.numpy.array([7, 9], jax.numpy.uint32)
    masks = [random_mask(seed_of_kind(seed, kind), 0.5, (64, 64)) for kind in range(3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((masks[one] == masks[other]).mean()) == pytest.approx(0.5, abs=0.03)
    batch = next(batches(RECORDS))
    dropped, again = (trained(CONFIG, batch, dropout=True)[1]["loss"] for _ in range(2))
    assert dropped == again != trained(CONFIG, batch)[1]["loss"]


@pytest.mark.parametrize("records", [RECORDS, SHARED, WEIGHED], ids=["plain", "shared", "weighed"])
@pytest.mark.parametrize("exactly", [None, 7])
def test_every_record_comes_once_an_epoch(records, exactly):
    """In batches of about the same size, which do not depend on the number of groups."""
    options = {"examples_per_batch": exactly, "batch_size": 4}
    maker, cut = batches(records, **options), batches(records, 2, **options)
    seen = []
    while maker.state()["epoch"] == 0:
        one = next(maker)
        if maker.state()["epoch"] == 0 or exactly is None:
            found = unpack(one) if records.source is None else targets_of(one)
            assert sorted(found) == sorted(
                unpack(next(cut)) if records.source is None else targets_of(next(cut))
            )
            seen += found
    if exactly is None:
        rows = batches(records, padding_free=False, examples_per_batch=40)
        everything = next(rows)
        whole = unpack(everything) if records.source is None else targets_of(everything)
        assert sorted(seen) == sorted(whole)
        assert maker.fill.inputs > 0.75
        assert maker.fill.targets > 0.65
    assert len(seen) == len(set(seen)) or records is not RECORDS


def targets_of(batch):
    """The targets of a batch, as tuples."""
    found = []
    for tokens, ids in zip(
        batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True
    ):
        found += [tuple(tokens[ids == number].tolist()) for number in range(1, ids.max() + 1)]
    return found


@pytest.mark.parametrize("exactly", [None, 7])
def test_goes_on_where_it_stopped(exactly):
    options = {"examples_per_batch": exactly, "batch_size": 4}
    maker = batches(SHARED, **options)
    for _ in range(9):  # beyond an epoch
        next(maker)
    state = json.loads(json.dumps(maker.state()))
    again = batches(SHARED, **options)
    again.restore(state)
    for _ in range(3):
        ours, theirs = next(maker), next(again)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    other = batches(SHARED, padding_free=False, **options)
    with pytest.raises(UserError, match="position in the data belongs to other"):
        other.restore(state)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="PADDING_FREE = True has no rows that PACK = False"):
        batches(RECORDS, pack=False)
    with pytest.raises(
        UserError, match=r"EXAMPLES_PER_BATCH = 3 makes .* fewer than their 4 parts"
    ):
        batches(RECORDS, 4, examples_per_batch=3)
    with pytest.raises(UserError, match="BATCH_SIZE = 1 makes padding-free batches of about"):
        batches(RECORDS, 8, examples_per_batch=None, batch_size=1)


def test_a_group_without_examples_changes_nothing():
    usual = batches(RECORDS).sizes
    maker = GroupMaker(RECORDS, [(kind.inputs, kind.targets) for kind in usual.kinds])
    some, none = (maker.place(np.arange(count)) for count in (9, 0))
    sizes = usual.scaled(some.parts_needed(usual))
    both, alone = maker.make([some, none], sizes), maker.make([some], sizes)
    assert_equal(trained(CONFIG, both, num_microbatches=2), trained(CONFIG, alone))
    assert [ids.tolist() for ids in split(RECORDS, [np.arange(2)], 3)] == [[0, 1], [], []]


def test_many_tokens_are_a_multiple_that_accelerators_cut_evenly():
    sizes = Sizes(1600, 10_000, ()).scaled(8)
    assert (sizes.inputs, sizes.targets) == (800, 5056)


def test_a_group_that_has_no_room_gets_larger_sizes():
    usual = batches(RECORDS).sizes
    maker = GroupMaker(RECORDS, [(kind.inputs, kind.targets) for kind in usual.kinds])
    group = maker.place(np.arange(len(RECORDS)))
    assert not group.fits(usual)
    parts = group.parts_needed(usual)
    assert parts > 16
    assert group.fits(usual.scaled(parts))
    assert not group.fits(usual.scaled(parts - 1))
    assert len(unpack(maker.make([group], usual.scaled(parts)))) == len(RECORDS)


def test_attention_is_computed_in_short_rows_alone():
    """The program of a step has no logits of all tokens against all."""
    batch = next(batches(RECORDS, examples_per_batch=40))
    config = dataclasses.replace(CONFIG, dropout_rate=0.0)
    student = Student(config, make_mesh(devices=jax.devices()[:1]))
    text = (
        student.jit(lambda p, b: student.hidden(p, b, None))
        .lower(student.abstract_params, batch)
        .as_text()
    )
    size = batch["encoder_segment_ids"].shape[1]
    assert f"{size}x{config.emb_dim}" in text
    assert f"{size}x{size}" not in text
