"""Generation: tokens equal Hugging Face's, whatever the batch, the prefix, the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbs_jax.checkpoints.decoder_tokenizer import CompletionTokenizer
from sbs_jax.checkpoints.decoder_weights import load_params, open_checkpoint
from sbs_jax.decoding.choice import choose, in_nucleus
from sbs_jax.decoding.completions import CompletionEngine, Job, shared_beginning
from sbs_jax.errors import UserError
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.teacher.backends.local import LocalBackend
from sbs_jax.teacher.flow import Flow
from sbs_jax.teacher.sampling import Sampling
from tests.decoder.support import save_random, smollm2_path
from tests.teacher.support import ask, examples, read_jsonl


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    network = save_random("llama-gqa", folder)
    return folder, network


def engine_of(folder, mesh=None, **settings):
    checkpoint = open_checkpoint(folder)
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    params = load_params(checkpoint, mesh, settings.get("dtype", "float32"))
    return CompletionEngine(
        checkpoint.config, params, CompletionTokenizer(checkpoint), mesh, **settings
    )


def prompts(number, beginning=40, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.integers(40, 120, beginning).tolist()
    return [
        (*shared, 40 + row, *rng.integers(40, 120, rng.integers(1, 30)).tolist())
        for row in range(number)
    ]


def hf_greedy(network, prompt, new):
    import torch

    with torch.no_grad():
        out = network.generate(
            torch.asarray([prompt]), max_new_tokens=new, do_sample=False, eos_token_id=2
        )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_greedy_tokens_equal_hugging_face(llama, rows, share):
    folder, network = llama
    engine = engine_of(folder, share_prefix=share)
    jobs = [Job(prompt, 70) for prompt in prompts(rows)]
    for job, said in zip(jobs, engine.generate(jobs), strict=True):
        wanted = hf_greedy(network, job.tokens, 70)
        assert said.finish_reason == ("stop" if 2 in wanted else "length")
        assert said.tokens == [t for t in wanted if t != 2]
    assert (engine.work.prefix > 0) == share


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (1, 8)])
def test_tokens_do_not_depend_on_the_mesh(llama, shape):
    folder, _ = llama
    jobs = [Job(prompt, 12) for prompt in prompts(8)]
    wanted = [said.tokens for said in engine_of(folder).generate(jobs)]
    got = [said.tokens for said in engine_of(folder, make_mesh(*shape)).generate(jobs)]
    assert got == wanted


def test_sampled_tokens_depend_on_the_seed_and_not_on_the_batch(llama):
    folder, _ = llama
    engine = engine_of(folder)
    jobs = [Job(p, 20, temperature=1.0, top_p=0.95, seed=i) for i, p in enumerate(prompts(5))]
    together = [said.tokens for said in engine.generate(jobs)]
    alone = [engine.generate([job])[0].tokens for job in jobs]
    assert together == alone
    other = Job(jobs[0].tokens, 20, temperature=1.0, top_p=0.95, seed=99)
    assert engine.generate([other])[0].tokens != alone[0]


def test_rows_of_different_length_shrink_the_batch_and_stay_right(llama):
    folder, network = llama
    engine = engine_of(folder)
    limits = [1, 2, 3, 4, 5, 6, 7, 8, 9, 60, 70, 3]
    jobs = [Job(p, n) for p, n in zip(prompts(12, seed=5), limits, strict=True)]
    for job, said in zip(jobs, engine.generate(jobs), strict=True):
        wanted = hf_greedy(network, job.tokens, job.max_new)
        assert said.tokens == [t for t in wanted if t != 2]


def test_stop_strings_end_a_completion_and_are_no_part_of_it(llama):
    folder, _ = llama
    engine = engine_of(folder)
    (prompt,) = prompts(1)
    (whole,) = engine.generate([Job(prompt, 30)])
    stop = whole.text[7:9]
    (cut,) = engine.generate([Job(prompt, 30, stop=("never", stop))])
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert cut.finish_reason == "stop"


def test_a_new_kind_of_prompt_gets_a_new_prefix_and_an_old_one_is_reused(llama):
    folder, network = llama
    engine = engine_of(folder)
    for seed in (0, 0, 1):
        jobs = [Job(prompt, 5) for prompt in prompts(3, seed=seed)]
        for job, said in zip(jobs, engine.generate(jobs), strict=True):
            assert said.tokens == [t for t in hf_greedy(network, job.tokens, 5) if t != 2]
    assert engine.work.prefix == 80
    assert engine.work.shared == 9 * 40


def test_prompts_that_come_one_at_a_time_share_what_they_have_in_common(llama):
    folder, network = llama
    engine = engine_of(folder)
    texts = prompts(3)
    for prompt in (*texts, texts[0][:43]):
        (said,) = engine.generate([Job(prompt, 5)])
        assert said.tokens == [t for t in hf_greedy(network, prompt, 5) if t != 2]
    # The first is computed; of it the others need no more than they have in common with it.
    assert engine.work.prefix == len(texts[0]) - 1
    assert engine.work.shared == len(texts[0]) - 1 + 40 + 40 + 42
    # Many rows that would each have to compute what is missing get a prefix of their own.
    jobs = [Job((*texts[1], 50 + row), 5) for row in range(4)]
    for job, said in zip(jobs, engine.generate(jobs), strict=True):
        assert said.tokens == [t for t in hf_greedy(network, job.tokens, 5) if t != 2]
    assert engine.work.prefix == len(texts[0]) - 1 + len(texts[1])


def test_logprobs(llama):
    folder, network = llama
    import torch

    (prompt,) = prompts(1)
    (said,) = engine_of(folder).generate([Job(prompt, 6)])
    tokens = [*prompt, *said.tokens]
    with torch.no_grad():
        scores = network(torch.asarray([tokens])).logits[0].log_softmax(-1)
    wanted = sum(
        float(scores[place - 1, tokens[place]]) for place in range(len(prompt), len(tokens))
    )
    assert said.logprob == pytest.approx(wanted, abs=1e-3)


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    logits = jnp.log(jnp.asarray([[0.5, 0.2, 0.15, 0.1, 0.05]] * 4))
    inside = in_nucleus(logits, jnp.asarray([0.4, 0.6, 0.85, 1.0]))
    assert inside.sum(-1).tolist() == [1, 2, 3, 5]


def test_sampling_follows_the_distribution():
    chances = np.asarray([0.6, 0.3, 0.1])
    rows = 4000
    settings = {
        "temperature": jnp.ones(rows),
        "top_p": jnp.ones(rows),
        "seed": jnp.arange(rows),
    }
    logits = jnp.tile(jnp.log(chances), (rows, 1))
    token, _ = choose(logits, jnp.zeros(rows, int), settings, sampled=True, nucleus=False)
    counts = np.bincount(token, minlength=3) / rows
    # Five standard errors.
    np.testing.assert_allclose(counts, chances, atol=5 * (0.25 / rows) ** 0.5)


def test_shared_beginning_leaves_a_token_of_everybody():
    assert shared_beginning([(1, 2, 3), (1, 2, 4)]) == (1, 2)
    assert shared_beginning([(1, 2), (1, 2, 4)]) == (1,)
    assert shared_beginning([(1, 2)]) == (1,)
    assert shared_beginning([(1,), (2,)]) == ()


def test_the_backend_answers_a_data_set(llama, tmp_path):
    folder, _ = llama
    rows = [{"id": str(i), "input": f"{i} and 3?", "label": "(3)"} for i in range(9)]
    rows.append({"id": "long", "input": "x" * 300})
    prompt = tmp_path / "p.yaml"
    prompt.write_text(
        "parser: text\nexemplars: [{input: one, rationale: two, label: three}]\n"
        "styles: {few_shot: {exemplar: '{{ input }} {{ rationale }} {{ label }} ', "
        "query: '{{ input }}'}}"
    )
    settings = {"prompts": str(prompt), "sampling": Sampling(max_tokens=9)}
    texts = []
    for name, size in (("a", 4), ("b", 1)):
        backend = LocalBackend(str(folder), batch_size=size, data_parallel=1, model_parallel=8)
        out = tmp_path / name
        run, done, _ = ask(out, rows, backend=backend, flow=Flow(concurrency=2), **settings)
        assert "context length is 256" in done[-1]["flags"]["error"]
        assert run["totals"]["prompt_tokens"] == 9 * len("one two three 0 and 3?")
        journal = read_jsonl(out / "generations.jsonl")
        texts.append({row["id"]: row["text"] for row in journal})
    assert texts[0] == texts[1] and len(set(texts[0].values())) > 1


def test_the_backend_speaks_the_models_chat_template(llama):
    folder, _ = llama
    backend = LocalBackend(str(folder))
    turns = [{"role": "user", "content": "hi"}]
    assert backend.count_tokens(turns) == (len("<s>") - 2 + len("u:hi") + 1 + len("a:"), True)


def test_bad_settings(llama, tmp_path):
    folder, _ = llama
    with pytest.raises(UserError, match="LOCAL_DTYPE"):
        LocalBackend(str(folder), dtype="int3")
    with pytest.raises(UserError, match="MODEL_PARALLEL = 3"):
        ask(tmp_path, examples(1), backend=LocalBackend(str(folder), model_parallel=3))
    odd = Sampling(extra_body={"top_k": 3})
    with pytest.raises(UserError, match="does not know 'top_k'"):
        backend = LocalBackend(str(folder), data_parallel=8)
        ask(tmp_path / "b", examples(1), backend=backend, sampling=odd)


@pytest.mark.slow
def test_smollm2_greedy_tokens_equal_hugging_face():
    path = smollm2_path()
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    for needed in ("gguf", "accelerate"):
        pytest.importorskip(needed, reason="pip install gguf accelerate: Hugging Face needs them")
    network = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    ).eval()
    engine = engine_of(path)
    texts = ["Q: Ann has 3 apples and gets 4. How many?\nA:", "The capital of France is"]
    jobs = [Job(tuple(engine.tokenizer.encode(text)), 24) for text in texts]
    for job, said in zip(jobs, engine.generate(jobs), strict=True):
        wanted = hf_greedy(network, job.tokens, 24)
        assert said.tokens == [t for t in wanted if t not in engine.tokenizer.end_ids]
