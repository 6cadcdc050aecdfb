"""A T5Gemma 2 as the student: trained, evaluated, asked, exported and read again."""

import dataclasses
import json

import numpy as np
import pytest

from sbs_jax.checkpoints.loading import identify
from sbs_jax.checkpoints.safetensors_files import open_safetensors
from sbs_jax.checkpoints.t5gemma2 import huggingface_sources
from sbs_jax.errors import UserError
from sbs_jax.inference.loader import load_predictor
from sbs_jax.programs.export import export
from sbs_jax.text_tokenizer import TextTokenizer
from tests.decoder.students import one_device, params_of, run
from tests.t5gemma2 import support


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder of transformers, its weights in several shards."""
    folder = tmp_path_factory.mktemp("pretrained")
    support.save(support.make([support.LOCAL]), folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


@pytest.fixture(scope="module")
def trained(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = dataclasses.replace(identify(pretrained).config, attention="whole")
    return run(folder, config, steps=2, initial=pretrained)


def whole(tensors):
    return {name: tensor[(slice(None),) * len(tensor.shape)] for name, tensor in tensors.items()}


def test_a_folder_goes_in_and_comes_out_bit_for_bit(pretrained, tmp_path):
    import torch
    import transformers

    source = identify(pretrained)
    assert (source.config.pad_id, source.config.eos_id, source.config.bos_id) == (0, 2, 1)
    folder = export(checkpoint_path=str(pretrained), output_dir=str(tmp_path / "out"))
    before, after = (whole(open_safetensors(place)) for place in (pretrained, folder))
    for name in (source.name for source in huggingface_sources(source.config).values()):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert identify(folder).config == source.config

    network, loading = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(loading.values()), loading
    ids = transformers.AutoTokenizer.from_pretrained(folder)("ab c", return_tensors="pt").input_ids
    assert ids.tolist() == [[1, 97, 98, 32, 99]]
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(pretrained)
    starts = torch.tensor([[1, 100, 101]])
    with torch.no_grad():
        theirs, again = (
            model(input_ids=ids, decoder_input_ids=starts).logits for model in (reference, network)
        )
    torch.testing.assert_close(again, theirs, atol=0, rtol=0)


def test_it_trains_and_is_recorded(pretrained, trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert len(losses) == 2 and losses[-1] < losses[0]
    source = identify(trained)
    assert (source.config, source.step) == (identify(pretrained).config, 2)
    assert source.settings["data_settings"]["input_frame"] == ["<s>", ""]
    tokenizer = TextTokenizer(source.require_vocabulary())
    assert tokenizer.encode("ab</s>") == [97, 98, 1]


def test_it_answers_as_transformers_does(trained, tmp_path):
    """Its label is what the exported folder generates, asked as its model card says."""
    import torch
    import transformers

    predictor = load_predictor(str(trained), mesh=one_device(), batch_size=1, max_decode_len=8)
    (answer,) = predictor.labels(["1 + 1"])

    folder = export(checkpoint_path=str(trained), output_dir=str(tmp_path / "out"))
    ours = params_of(trained, identify(trained).config)
    for path, value in params_of(folder, identify(folder).config).items():
        np.testing.assert_array_equal(value, ours[path], err_msg=path)
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    card = (folder / "README.md").read_text()
    assert "prompt = [1, *tokenizer" in card and "text2text-generation" in card
    prompt = torch.tensor([[1, *tokenizer("predict: ", add_special_tokens=False).input_ids]])
    asked = tokenizer("1 + 1", return_tensors="pt")
    with torch.no_grad():
        out = network.generate(**asked, decoder_input_ids=prompt, max_new_tokens=8)
    said = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
    assert answer.label == said.strip()


def test_what_is_not_for_it_is_refused(trained, tmp_path):
    for options, said in (
        ({"file_format": "gguf"}, "FORMAT = 'gguf' is for decoder-only students"),
        ({"adapters_only": True}, "ADAPTERS_ONLY is not for a T5Gemma 2"),
    ):
        with pytest.raises(UserError, match=said):
            export(checkpoint_path=str(trained), output_dir=str(tmp_path / "out"), **options)
    with pytest.raises(UserError, match="ENGINE = 'ctranslate2' runs T5 alone"):
        load_predictor(str(trained), mesh=one_device(), engine="ctranslate2")
