"""Decoding speed: sbs_jax.decoding against transformers' `generate`, same weights, same inputs.

    python benchmarks/decoding.py --release_dir=PATH [--all_cores] [--json=FILE]

Labels of 1,000 CommonsenseQA problems (greedy, beam search, ranking of each problem's five choices)
and rationales of 200 (greedy, beam search), by turns in this one process, float32. The weights are
random and shared (`cpu_small`: d_model 256, 4+4 layers, vocabulary 8,192, T5 v1.1); outputs have a
forced length, and for greedy decoding of rationales also end by a token that serves as EOS. Both
sides get batches sorted by length, each padded to its longest (ours to a multiple of 16).
Compilation and tokenizing are not timed. `equal` is the share of rows in which both sides wrote the
same tokens.

With `--ctranslate2 float32 int8` also by CTranslate2, the other ENGINE of the service, greedily.
"""

from __future__ import annotations

import argparse
import os
import sys

# Both frameworks read these when they are imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "--all_cores" not in sys.argv:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import dataclasses
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
import sentencepiece
import torch
import transformers

from sbs_jax.checkpoints import ctranslate2_weights
from sbs_jax.checkpoints.huggingface import config_from_huggingface, match_huggingface
from sbs_jax.checkpoints.tensors import place_tree
from sbs_jax.decoding.beam import beam_decode
from sbs_jax.decoding.candidates import candidate_tree
from sbs_jax.decoding.continuous import ContinuousDecoder, Request
from sbs_jax.decoding.greedy import greedy_decode
from sbs_jax.decoding.ranking import rank_candidates
from sbs_jax.host_memory import keep_freed_memory
from sbs_jax.models.config import T5Config
from sbs_jax.models.network import Transformer
from sbs_jax.partitioning.mesh import make_mesh
from sbs_jax.student import Student

VOCABULARY = 8192
EOS = 1
RATIONALE_LENGTH = 64
BEAMS = 4
LENGTH_MULTIPLE = 16


@dataclasses.dataclass
class Problem:
    """A tokenized problem: its input, its choices, each with EOS."""

    tokens: list[int]
    choices: list[list[int]]


def load_problems(release_dir: Path, count: int) -> list[Problem]:
    """The first problems of CommonsenseQA, by a vocabulary trained on its training texts."""
    folder = release_dir / "cqa"
    texts = [_texts(row) for row in _rows(folder / "cqa_train.json")]
    with tempfile.TemporaryDirectory() as scratch:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text for row in texts[:4000] for text in row]),
            model_prefix=f"{scratch}/spiece",
            vocab_size=VOCABULARY,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=EOS,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
        encode = sentencepiece.SentencePieceProcessor(f"{scratch}/spiece.model").encode
    rows = (*_rows(folder / "cqa_test.json"), *_rows(folder / "cqa_train.json"))[:count]
    return [
        Problem(
            [*encode(_texts(row)[0]), EOS], [[*encode(choice), EOS] for choice in row["choices"]]
        )
        for row in rows
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _texts(row: dict[str, Any]) -> tuple[str, ...]:
    choices = "\n".join(
        f"({letter}) {choice}" for letter, choice in zip("abcde", row["choices"], strict=True)
    )
    prompt = f"predict: {row['question']}\nAnswer Choices:\n{choices}"
    return prompt, *row["choices"], row["abstractive_explanation"]


def make_model(seed: int) -> transformers.T5ForConditionalGeneration:
    """A random T5 v1.1 whose head has the usual scale, untied."""
    torch.manual_seed(seed)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCABULARY,
            d_model=256,
            d_kv=64,
            d_ff=512,
            num_layers=4,
            num_decoder_layers=4,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    )
    model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 256) * 256**-0.5)
    return model.eval()


def batches(problems: Sequence[Problem], size: int, multiple: int) -> Iterator[np.ndarray]:
    """Inputs sorted by length, in even batches of at most `size`, padded to their longest.

    Ours have lengths of a multiple and one number of rows, so that few shapes are compiled: an
    input may then be repeated to fill up the last batch.
    """
    ordered = sorted(problems, key=lambda problem: len(problem.tokens))
    size = even(len(ordered), size)
    for start in range(0, len(ordered), size):
        rows = ordered[start : start + size]
        length = -(-max(len(row.tokens) for row in rows) // multiple) * multiple
        rows += rows[-1:] * (size - len(rows) if multiple > 1 else 0)
        yield pad([row.tokens for row in rows], length, rows=len(rows))


def even(count: int, size: int) -> int:
    """The number of rows of batches that are at most `size` and as even as possible."""
    return -(-count // -(-count // size))


def pad(sequences: Sequence[Sequence[int]], length: int, rows: int) -> np.ndarray:
    """int32 [rows, length], padded with 0."""
    array = np.zeros((rows, length), np.int32)
    for row, sequence in zip(array, sequences, strict=False):
        row[: len(sequence)] = sequence
    return array


def choice_batches(problems: Sequence[Problem], size: int) -> Iterator[np.ndarray]:
    """The choices of the problems of `batches`, int32 [B, C, T]."""
    ordered = sorted(problems, key=lambda problem: len(problem.tokens))
    size = even(len(ordered), size)
    longest = max(len(choice) for problem in ordered for choice in problem.choices)
    for start in range(0, len(ordered), size):
        chosen = [pad(row.choices, longest, 5) for row in ordered[start : start + size]]
        chosen += chosen[-1:] * (size - len(chosen))
        yield np.stack(chosen)


@dataclasses.dataclass
class Side:
    """A way of decoding all problems.

    Attributes:
      name: for the table.
      run: decodes all; returns tokens [N, T], or nothing to compare.
      seconds: of every timed run.
      cpu: processor seconds of every timed run, of all threads.
    """

    name: str
    run: Callable[[], np.ndarray | None]
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)


def generate(
    model: transformers.T5ForConditionalGeneration,
    problems: Sequence[Problem],
    size: int,
    length: int,
    eos_id: int | None,
    beams: int,
) -> np.ndarray:
    """The side of transformers; without an EOS the length is forced."""
    outputs = []
    with torch.inference_mode():
        for inputs in batches(problems, size, 1):
            tokens = model.generate(
                torch.from_numpy(inputs).long(),
                attention_mask=torch.from_numpy(inputs > 0).long(),
                do_sample=False,
                num_beams=beams,
                max_new_tokens=length,
                eos_token_id=eos_id,
                pad_token_id=0,
                length_penalty=1.0,
                early_stopping=True,
            ).numpy()[:, 1:]
            outputs.append(np.pad(tokens, ((0, 0), (0, length - tokens.shape[1]))))
    return np.concatenate(outputs)


def decode(
    model: Transformer,
    params: Any,
    problems: Sequence[Problem],
    size: int,
    length: int,
    eos_id: int | None,
    beams: int,
) -> np.ndarray:
    """Our side; all batches are under way before the first is fetched."""
    eos_id = -1 if eos_id is None else eos_id
    outputs = []
    for inputs in batches(problems, size, LENGTH_MULTIPLE):
        if beams == 1:
            tokens = greedy_decode(model, params, inputs, max_decode_len=length, eos_id=eos_id)
        else:
            tokens, _ = beam_decode(
                model,
                params,
                inputs,
                max_decode_len=length,
                num_beams=beams,
                alpha=1.0,
                length_penalty="huggingface",
                early_stopping=True,
                eos_id=eos_id,
            )
        outputs.append(tokens)
    tokens = np.concatenate([np.asarray(batch).reshape(-1, length) for batch in outputs])
    return tokens[: len(problems)]


def decode_continuously(
    decoder: ContinuousDecoder, params: Any, problems: Sequence[Problem], slots: int
) -> np.ndarray:
    """Our side as evaluation, inference and serving use it: slots that are refilled."""
    ordered = sorted(problems, key=lambda problem: len(problem.tokens))
    longest = max(len(problem.tokens) for problem in ordered)
    lengths = range(LENGTH_MULTIPLE, longest + LENGTH_MULTIPLE, LENGTH_MULTIPLE)
    requests = [Request(problem.tokens) for problem in ordered]
    outputs = decoder(params, requests, (min(slots, len(requests)),), lengths)
    return pad([output.tokens for output in outputs], decoder.max_decode_len, len(outputs))


def translator(folder: str, params: Any, config: T5Config, quantization: str) -> Any:
    """The same weights in CTranslate2, as our engine of that name converts them."""
    import ctranslate2

    ctranslate2_weights.save(folder, params, config, quantization)
    return ctranslate2.Translator(folder, device="cpu", compute_type=quantization, intra_threads=1)


def translate(
    engine: Any, problems: Sequence[Problem], size: int, length: int, eos_id: int | None
) -> np.ndarray:
    """Greedy decoding by CTranslate2, which sorts by length itself; its tokens are named by id."""
    ordered = sorted(problems, key=lambda problem: len(problem.tokens))
    results = engine.translate_batch(
        [[str(token) for token in problem.tokens] for problem in ordered],
        beam_size=1,
        max_batch_size=size,
        max_input_length=0,
        max_decoding_length=length,
        min_decoding_length=length if eos_id is None else 1,
        end_token=None if eos_id is None else [str(eos_id)],
        return_end_token=True,
    )
    outputs = [[int(name) for name in result.hypotheses[0]] for result in results]
    return pad(outputs, length, len(outputs))


def rank(model: Transformer, params: Any, problems: Sequence[Problem], size: int) -> None:
    """Our closed label set: every problem's own five choices."""
    pairs = zip(
        batches(problems, size, LENGTH_MULTIPLE), choice_batches(problems, size), strict=True
    )
    ranked = [
        rank_candidates(model, params, inputs, candidate_tree(choices)) for inputs, choices in pairs
    ]
    for scores in ranked:
        np.asarray(scores)


def ending_token(tokens: np.ndarray) -> int:
    """The token that, as EOS, would end rows at the most different lengths."""
    first = {
        token: [int(np.argmax(row == token)) for row in tokens if (row == token).any()]
        for token in np.unique(tokens).tolist()
        if token > 1
    }
    return max(first, key=lambda token: (len(set(first[token])), len(first[token])))


def compare(name: str, sides: Sequence[Side], count: int, repeats: int) -> list[dict[str, Any]]:
    """Times the sides by turns; the first is the peer."""
    outputs = [side.run() for side in sides]  # compiles
    for repeat in range(repeats):
        for side in sides if repeat % 2 else sides[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            side.run()
            side.seconds.append(time.perf_counter() - wall)
            side.cpu.append(time.process_time() - cpu)
    results = []
    for side, output in zip(sides, outputs, strict=True):
        ratios = [peer / mine for mine, peer in zip(side.seconds, sides[0].seconds, strict=True)]
        equal = None
        if output is not None and output.shape == outputs[0].shape:
            equal = float(np.mean((output == outputs[0]).all(axis=1)))
        results.append(
            {
                "what": name,
                "program": side.name,
                "examples_per_second": count / statistics.median(side.seconds),
                "ratio": statistics.median(ratios),
                "ratio_cpu": statistics.median(
                    peer / mine for mine, peer in zip(side.cpu, sides[0].cpu, strict=True)
                ),
                "equal": equal,
            }
        )
    return results


def run(arguments: argparse.Namespace, console: rich.console.Console) -> list[dict[str, Any]]:
    """All comparisons, each shown when it is made."""
    peer = make_model(arguments.seed)
    tensors = {name: value.detach().numpy() for name, value in peer.state_dict().items()}
    config = config_from_huggingface(peer.config.to_dict(), tensors)
    params = place_tree(
        match_huggingface(tensors, config),
        Student(config, make_mesh(devices=jax.devices()[:1])).placed_params,
        where="the peer",
        advice="",
    )
    students = {}
    for dtype in arguments.dtype:
        student = Student(
            dataclasses.replace(config, product_dtype=dtype), make_mesh(devices=jax.devices()[:1])
        )
        students[dtype] = student, student.for_inference(params)
    engines = {}
    for kind in arguments.ctranslate2:
        with tempfile.TemporaryDirectory() as folder:
            engines[kind] = translator(folder, jax.device_get(params), config, kind)
    problems = load_problems(arguments.release_dir, arguments.labels)
    explained = problems[: arguments.rationales]

    # Labels as long as the longest gold choice of a typical batch.
    longest = [max(len(choice) for choice in problem.choices) for problem in problems]
    groups = [longest[start : start + 16] for start in range(0, len(longest), 16)]
    label_length = round(statistics.mean(max(group) for group in groups))

    def sides(chosen: Sequence[Problem], length: int, eos_id: int | None, beams: int) -> list[Side]:
        made = []
        for size in arguments.peer_batch:
            made.append(
                Side(
                    f"generate, batch {size}",
                    lambda size=size: generate(peer, chosen, size, length, eos_id, beams),
                )
            )
        for (dtype, (student, weights)), size in itertools.product(
            students.items(), arguments.batch
        ):
            made.append(
                Side(
                    f"sbs_jax {dtype}, batch {size}",
                    lambda student=student, weights=weights, size=size: decode(
                        student.model, weights, chosen, size, length, eos_id, beams
                    ),
                )
            )
            if beams > 1:
                continue
            decoder = ContinuousDecoder(
                student, max_decode_len=length, eos_id=-1 if eos_id is None else eos_id
            )
            made.append(
                Side(
                    f"sbs_jax {dtype}, {size} slots",
                    lambda decoder=decoder, weights=weights, size=size: decode_continuously(
                        decoder, weights, chosen, size
                    ),
                )
            )
        for (kind, engine), size in itertools.product(engines.items(), arguments.batch):
            if beams == 1:
                made.append(
                    Side(
                        f"CTranslate2 {kind}, batch {size}",
                        lambda engine=engine, size=size: translate(
                            engine, chosen, size, length, eos_id
                        ),
                    )
                )
        return made

    ranking = [
        Side(
            f"sbs_jax {dtype} ranking, batch {size}",
            lambda student=student, weights=weights, size=size: rank(
                student.model, weights, problems, size
            ),
        )
        for (dtype, (student, weights)), size in itertools.product(
            students.items(), arguments.batch
        )
    ]
    student, weights = next(iter(students.values()))
    eos_id, mean = EOS, 0.0
    if "rationales_eos" in arguments.cases:
        endless = decode(student.model, weights, explained, 16, RATIONALE_LENGTH, None, 1)
        eos_id = ending_token(endless)
        ended = decode(student.model, weights, explained, 16, RATIONALE_LENGTH, eos_id, 1)
        mean = np.count_nonzero(ended, axis=1).mean()
    cases = {
        "labels": (
            f"labels of {label_length} tokens, greedy or ranking",
            sides(problems, label_length, None, 1) + ranking,
            len(problems),
        ),
        "labels_beam": (
            f"labels of {label_length} tokens, beam {BEAMS}",
            sides(problems, label_length, None, BEAMS),
            len(problems),
        ),
        "rationales": (
            f"rationales of {RATIONALE_LENGTH} tokens, greedy",
            sides(explained, RATIONALE_LENGTH, None, 1),
            len(explained),
        ),
        "rationales_eos": (
            f"rationales, greedy to an EOS (mean {mean:.0f} tokens)",
            sides(explained, RATIONALE_LENGTH, eos_id, 1),
            len(explained),
        ),
        "rationales_beam": (
            f"rationales of {RATIONALE_LENGTH} tokens, beam {BEAMS}",
            sides(explained, RATIONALE_LENGTH, None, BEAMS),
            len(explained),
        ),
    }
    results = []
    for case in arguments.cases:
        compared = compare(*cases[case], repeats=arguments.repeats)
        show(compared, console)
        results += compared
    return results


def show(results: Sequence[dict[str, Any]], console: rich.console.Console) -> None:
    """Prints the results as a table."""
    table = rich.table.Table(
        "what", "program", "examples/s", "÷ first", "CPU: first ÷", "equal", box=rich.box.SIMPLE
    )
    for result in results:
        equal = "" if result["equal"] is None else f"{result['equal']:.1%}"
        table.add_row(
            result["what"],
            result["program"],
            f"{result['examples_per_second']:.1f}",
            f"{result['ratio']:.2f}",
            f"{result['ratio_cpu']:.2f}",
            equal,
        )
    console.print(table)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    every = ["labels", "labels_beam", "rationales", "rationales_eos", "rationales_beam"]
    add("--release_dir", type=Path, required=True, help="the authors' released data: cqa/")
    add("--all_cores", action="store_true", help="of both sides; by default one thread each")
    add("--cases", nargs="+", default=every, choices=every)
    add("--labels", type=int, default=1000)
    add("--rationales", type=int, default=200)
    add("--batch", type=int, nargs="+", default=[16, 64], help="of our side")
    add("--peer_batch", type=int, nargs="+", default=[16, 64], help="the first is the measure")
    add("--dtype", nargs="+", default=["float32", "bfloat16"], help="of our products' operands")
    add("--ctranslate2", nargs="+", default=[], choices=["float32", "int8"])
    add("--repeats", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="also write the results here")
    return parser.parse_args(argv)


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    arguments = parse_arguments()
    keep_freed_memory()  # as every main of ours; PyTorch's memory is kept, too
    threads = (os.cpu_count() or 1) if arguments.all_cores else 1
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    results = run(arguments, rich.console.Console(highlight=False, soft_wrap=True))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
