"""What stands around an input: chat templates and the token that begins texts, as transformers."""

import dataclasses
import json

import pytest
from tokenizers import AddedToken, Tokenizer, processors

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


# In the families' special tokens and in what their own templates ask of Jinja; the words are ours.
LLAMA3 = """{{- bos_token }}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{{- "Day: " + date_string + "\\n\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
    {{- message["content"] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
GEMMA = """{{ bos_token }}
{%- if messages[0]["role"] == "system" %}
    {{- raise_exception("no system's words") }}
{%- endif %}
{%- for message in messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("users and models take turns") }}
    {%- endif %}
    {%- set role = "model" if message["role"] == "assistant" else message["role"] %}
    {{- "<start_of_turn>" + role + "\\n" }}
    {%- if message["content"] is string %}
        {{- message["content"] | trim }}
    {%- else %}
        {%- for part in message["content"] %}{{ part["text"] | trim }}{% endfor %}
    {%- endif %}
    {%- generation %}<end_of_turn>{% endgeneration %}

{% endfor %}
{%- if add_generation_prompt %}
    {{- "<start_of_turn>model\\n" }}
{%- endif %}
"""


@pytest.mark.parametrize(
    ("template", "specials"),
    [
        (
            LLAMA3,
            ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        ),
        (GEMMA, ("<bos>", "<end_of_turn>", "<start_of_turn>")),
    ],
)
def test_templates_of_llama_3_and_gemma(folder, template, specials):
    transformers = pytest.importorskip("transformers")
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    tokenizer.save(str(path))
    names = {"bos_token": specials[0], "eos_token": specials[1]}
    change(folder, chat_template=template, **names)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), **names)
    options = {
        "chat_template": template,
        "add_generation_prompt": True,
        "date_string": "26 Jul 2024",
    }
    expected = theirs.apply_chat_template(CHAT, return_dict=False, **options)
    assert ids_of(path, chat=True) == expected
    assert {expected.count(theirs.convert_tokens_to_ids(name)) for name in specials} != {0}
    text = theirs.apply_chat_template(CHAT, tokenize=False, **options)
    assert QUESTION.join(TextTokenizer(path).frame(chat=True)) == text
    assert "26 Jul 2024" in text or template is GEMMA


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
