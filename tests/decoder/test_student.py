"""A decoder as the student: the same training, evaluation and inference as a T5, nothing else."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sbs_jax.checkpoints.loading import identify, load_params
from sbs_jax.data.batching import Batching, TrainBatches
from sbs_jax.data.pipeline import load_records
from sbs_jax.data.resolving import TaskChoice, resolve_task
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.evaluation.loss_step import make_loss_step
from sbs_jax.inference.loader import load_predictor
from sbs_jax.programs import eval as evaluation
from sbs_jax.programs.export import export
from sbs_jax.student import Student
from sbs_jax.text_tokenizer import TextTokenizer
from tests.decoder.students import TINY, one_device, params_of, run
from tests.decoder.support import save_random
from tests.evaluation import toy


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "first", steps=4)


def test_it_trains_and_is_recorded(first):
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert len(losses) == 4 and losses[-1] < losses[0]
    source = identify(first)
    assert (source.config, source.step) == (TINY, 4)


def test_a_resumed_run_equals_one_that_was_not_stopped(first, tmp_path):
    run(tmp_path / "halves", steps=2)
    run(tmp_path / "halves", steps=4)
    whole, halves = params_of(first, TINY), params_of(tmp_path / "halves", TINY)
    for path, value in whole.items():
        np.testing.assert_array_equal(value, halves[path], err_msg=path)


def test_it_is_evaluated_and_answers(first, tmp_path):
    splits = evaluation.EvaluatedSplits(["validation"], batch_size=8, max_decode_len=4)
    config = evaluation.EvalConfig(str(first), str(tmp_path), evaluated=splits)
    metrics = evaluation.evaluate(config, mesh=one_device())
    assert np.isfinite(metrics["validation"]["label_loss"])
    predictor = load_predictor(
        str(first), mesh=one_device(), batch_size=2, max_decode_len=4, candidates=["1", "2"]
    )
    (answer,) = predictor.labels(["1 + 1"])
    assert answer.label in ("1", "2")


def test_it_goes_out_to_hugging_face_and_comes_back(first, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = export(checkpoint_path=str(first), output_dir=str(tmp_path / "out"))
    ours = params_of(first, TINY)
    for path, value in params_of(folder, TINY).items():
        np.testing.assert_array_equal(value, ours[path], err_msg=path)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("1 + 1")["input_ids"]])
    x, y = ids.numpy()[:, :2], np.concatenate([[[0]], ids.numpy()[:, 2:]], axis=1)
    model = Student(TINY, one_device()).model
    params = traverse_util.unflatten_dict(ours, sep="/")
    logits = model.apply({"params": params}, x, y)
    with torch.no_grad():
        theirs = network(ids).logits[:, 1:].numpy()
    np.testing.assert_allclose(logits, theirs, atol=1e-5)
    assert tokenizer.decode(ids[0]) == "1 + 1"


def test_it_begins_with_pretrained_weights_and_their_tokenizer(tmp_path):
    save_random("llama-gqa", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    source = identify(tmp_path)
    assert (source.config.pad_id, source.config.eos_id) == (0, 2)
    folder = run(tmp_path / "run", source.config, steps=1, initial=tmp_path)
    tokenizer = TextTokenizer(identify(folder).require_vocabulary())
    assert tokenizer.encode("ab</s>") == [97, 98, 1]
    run(folder, source.config, steps=2)  # needs MODEL_DIR alone
    exported = export(checkpoint_path=str(folder), output_dir=str(tmp_path / "out"))
    assert identify(exported).config == source.config
    other = dataclasses.replace(source.config, eos_id=1)
    with pytest.raises(UserError, match="eos_id is 2 in this checkpoint but 1 in this run"):
        run(tmp_path / "other", other, initial=tmp_path)


@pytest.mark.parametrize("method", ["standard", "joint"])
@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_the_loss_is_that_of_completion_only_training(tmp_path, method, side):
    """transformers' loss of plain texts whose inputs and prefixes have the label -100."""
    torch = pytest.importorskip("torch")
    network = save_random("llama-gqa", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    source = identify(tmp_path)
    toy.register()
    settings = DataSettings(vocabulary_path=str(tmp_path / "tokenizer.json"), prefix_side=side)
    task = resolve_task(TaskChoice("evaluator_toy", method=method), settings)
    batching = Batching({"inputs": 250, "targets": 150}, batch_size=4)
    records = load_records(task, "train", batching.feature_lengths)
    batch = next(TrainBatches(records, batching, seed=0, row_multiple=1))
    student = Student(source.config, one_device())
    params = load_params(source, student.placed_params)
    step = make_loss_step(student.apply)
    sums = jax.jit(step)(params, {name: jnp.asarray(array) for name, array in batch.items()})
    ours = float(sums["label"]["loss"] / sums["label"]["weight"])

    moved = source.config.moved_ids
    total, count = 0.0, 0
    about = batch.get("decoder_source_ids", batch["decoder_segment_ids"])
    for row, segments in enumerate(batch["decoder_segment_ids"]):
        for segment in range(1, segments.max() + 1):
            mine = segments == segment
            (text,) = set(about[row][mine].tolist())
            x = batch["encoder_input_tokens"][row][batch["encoder_segment_ids"][row] == text]
            assert x[-1] == 1  # EOS, which a decoder does not read
            target = batch["decoder_target_tokens"][row][mine]
            parts = batch["decoder_target_parts"][row][mine]
            ids = [moved.get(token, token) for token in [*x[:-1].tolist(), *target.tolist()]]
            labels = [-100] * (len(x) - 1) + [
                token if part else -100
                for token, part in zip(ids[len(x) - 1 :], parts.tolist(), strict=True)
            ]
            with torch.no_grad():
                loss = network(torch.tensor([ids]), labels=torch.tensor([labels])).loss
            total += float(loss) * int((parts > 0).sum())
            count += int((parts > 0).sum())
    assert count == int(sums["label"]["tokens"]) > 100
    np.testing.assert_allclose(ours, total / count, rtol=1e-5)
