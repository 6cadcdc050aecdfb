r"""A student's greedy answers by sbs_jax and, exported, by CTranslate2: the same text? how fast?

    python -m sbs_jax.export --gin_file=runs/export.gin \
      --gin.CHECKPOINT_PATH=RUN --gin.OUTPUT_DIR=OUT
    ct2-transformers-converter --model OUT --output_dir CT2
    python benchmarks/exported.py --exported=OUT --ctranslate2=CT2 --inputs=PREDICTIONS.jsonl

PREDICTIONS.jsonl is what `sbs_jax.eval` wrote, or any JSON lines with `input`. Both programs get
the same tokens, batch size and number of threads; compiling is not counted, encoding neither.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path


def main() -> None:
    """Runs both, in turns, and prints the best of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--exported", type=Path, required=True)
    parser.add_argument("--ctranslate2", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--part", choices=["label", "rationale"], default="label")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_decode_len", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    # Before jax starts its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

    import ctranslate2
    from tokenizers import Tokenizer

    from sbs_jax.checkpoints.loading import identify, load_params
    from sbs_jax.decoding import shapes
    from sbs_jax.decoding.continuous import ContinuousDecoder, Request
    from sbs_jax.json_files import read_jsonl
    from sbs_jax.partitioning.mesh import make_mesh
    from sbs_jax.parts import DEFAULT_LABEL_PREFIX, DEFAULT_RATIONALE_PREFIX
    from sbs_jax.student import Student

    source = identify(options.exported)
    data = source.settings.get("data_settings") or {}
    tokenizer = Tokenizer.from_file(str(options.exported / "tokenizer.json"))
    rows = [row for _, row in read_jsonl(options.inputs)]
    prefixes = {"label": DEFAULT_LABEL_PREFIX, "rationale": DEFAULT_RATIONALE_PREFIX}
    prefix = data.get(f"{options.part}_prefix", prefixes[options.part])
    encoded = [tokenizer.encode(prefix + row["input"]) for row in rows]
    requests = [Request(item.ids) for item in encoded]
    lengths = shapes.input_lengths(max(len(item.ids) for item in encoded))

    student = Student(source.config, make_mesh())
    params = load_params(source, student.placed_params)
    decode = ContinuousDecoder(student, max_decode_len=options.max_decode_len)
    translator = ctranslate2.Translator(
        str(options.ctranslate2), intra_threads=options.threads, compute_type="float32"
    )

    def ours() -> list[str]:
        outputs = decode(params, requests, (options.batch_size,), lengths)
        return [tokenizer.decode(shapes.until_end(output.tokens)) for output in outputs]

    def theirs() -> list[str]:
        results = translator.translate_batch(
            [item.tokens for item in encoded],
            beam_size=1,
            max_batch_size=options.batch_size,
            max_decoding_length=options.max_decode_len,
        )
        hypotheses = [result.hypotheses[0] for result in results]
        return [tokenizer.decode([tokenizer.token_to_id(t) for t in text]) for text in hypotheses]

    same = sum(one == other for one, other in zip(ours(), theirs(), strict=True))
    best = {"sbs_jax": float("inf"), "CTranslate2": float("inf")}
    for _ in range(options.repeats):
        for name, run in (("sbs_jax", ours), ("CTranslate2", theirs)):
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    print(f"{student.num_params:,} parameters, float32, {options.threads} thread(s)")
    print(f"{options.part}s of {len(rows)} inputs, batches of {options.batch_size}")
    print(f"the same text: {same}")
    for name, seconds in best.items():
        print(f"{name}: {len(rows) / seconds:,.0f} examples/s")
    print(f"sbs_jax / CTranslate2: {best['CTranslate2'] / best['sbs_jax']:.2f}")


if __name__ == "__main__":
    main()
