"""What stands around an input: chat templates and the token that begins texts, as transformers."""

import dataclasses
import json

import pytest
from tokenizers import Tokenizer, processors

from sbs_jax.checkpoints.loading import identify
from sbs_jax.data.batching import Batching
from sbs_jax.data.resolving import TaskChoice
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError
from sbs_jax.gguf_files import GGUFFile
from sbs_jax.inference.loader import load_predictor
from sbs_jax.programs import running
from sbs_jax.programs.assembly import assemble
from sbs_jax.programs.train_config import EvaluationSettings, Saving, TrainConfig
from sbs_jax.text_tokenizer import TextTokenizer, from_gguf
from sbs_jax.training import optimizers
from tests.decoder.students import one_device
from tests.decoder.support import save_random, save_tokenizer, smollm2_path
from tests.evaluation import toy
from tests.programs.tiny import config_of

QUESTION = "1 + 1 = ? (a) 2"
CHAT = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def folder(tmp_path):
    save_tokenizer(tmp_path)
    change(tmp_path, eos_token="</s>")
    return tmp_path


def change(folder, **settings):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def ids_of(path, *, chat):
    """The framed question's ids in the file's own numbering."""
    tokenizer = TextTokenizer(path)
    before, after = tokenizer.frame(chat=chat)
    return list(map(tokenizer.id_in_file, tokenizer.encode(before + QUESTION + after)))


def test_a_chat_has_the_tokens_of_apply_chat_template(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    expected = theirs.apply_chat_template(
        CHAT, chat_template=template, add_generation_prompt=True, return_dict=False
    )
    assert ids_of(folder / "tokenizer.json", chat=True) == expected
    assert ids_of(folder / "tokenizer.json", chat=False) == [ord(letter) for letter in QUESTION]


def test_smollm2s_own_template():
    transformers = pytest.importorskip("transformers")
    path = smollm2_path()
    meta = GGUFFile(path).metadata
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=from_gguf(meta, path), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    expected = theirs.apply_chat_template(
        CHAT,
        chat_template=meta["tokenizer.chat_template"],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert ids_of(path, chat=True) == expected


def test_a_tokenizer_that_begins_texts_with_a_token(folder):
    transformers = pytest.importorskip("transformers")
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    tokenizer.save(str(path))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    assert TextTokenizer(path).frame() == ("<s>", "")
    assert ids_of(path, chat=False) == theirs(QUESTION)["input_ids"]


def test_a_run_reads_and_its_student_is_asked_in_chats(tmp_path):
    base = tmp_path / "base"
    save_random("llama-gqa", base)
    change(base, eos_token="</s>")
    toy.register()
    config = TrainConfig(
        model_config=identify(base).config,
        model_dir=str(tmp_path / "run"),
        task=TaskChoice(toy.TASK),
        batching=Batching({"inputs": 128, "targets": 128}, batch_size=8),
        optimizer=optimizers.adamw(1e-3),
        train_steps=1,
        data=DataSettings(chat=True),
        evaluation=EvaluationSettings(splits=()),
        saving=Saving(initial_checkpoint_path=str(base)),
    )
    run = assemble(config, mesh=one_device())
    assert run.task.settings.input_frame == ("<s>u:", "</s>a:")
    row = next(run.batches())["encoder_input_tokens"][0]

    begin = TextTokenizer(base / "tokenizer.json").encode("<s>u:")
    assert row[: len(begin)].tolist() == begin
    metadata = running.metadata(run, None)["data_settings"]
    assert (metadata["prefix_side"], metadata["chat"]) == ("decoder", True)


def test_weights_of_others_are_asked_as_their_tokenizer_says(folder):
    save_random("llama-gqa", folder)
    change(folder, eos_token="</s>")
    predictor = load_predictor(str(folder), mesh=one_device(), batch_size=1, max_decode_len=1)
    assert predictor.prompting.input_frame == ("", "")
    own = dataclasses.replace(predictor.prompting, input_frame=("<s>", "|"))
    assert own.encoder_text("label", "x") == "<s>x|"


def test_bad_settings(folder, tmp_path):
    with pytest.raises(UserError, match="INPUT_FRAME must be two texts"):
        DataSettings(input_frame=["x"])
    with pytest.raises(UserError, match="a T5 knows no chats"):
        _ = assemble(config_of(tmp_path, data=DataSettings(chat=True)), mesh=one_device()).task
    change(folder, chat_template="{{ 'hi' }}")
    with pytest.raises(UserError, match="does not say a user's message once"):
        TextTokenizer(folder / "tokenizer.json").frame(chat=True)
    change(folder, chat_template=None)
    with pytest.raises(UserError, match="has no chat template; set CHAT = False"):
        TextTokenizer(folder / "tokenizer.json").frame(chat=True)
