"""A folder of weights that names a module runs none of its code without consent."""

import sys

import pytest

from sbs_jax.checkpoints import loading
from sbs_jax.configuration.flags import parse_flags
from sbs_jax.errors import UserError
from sbs_jax.inference.loader import load_predictor
from sbs_jax.programs.eval import EvalConfig, evaluate
from tests.inference import toy

MODULE = "model_helpers_of_a_stranger"


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """The folder, and the file that its module makes when it runs."""
    folder = toy.write_model_dir(
        tmp_path / "run", mixture_or_task_module=MODULE, mixture_or_task_name="theirs"
    )
    ran = tmp_path / "ran"
    (folder / f"{MODULE}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return folder, ran


def test_without_consent_nothing_runs(downloaded, tmp_path):
    folder, ran = downloaded
    with pytest.raises(UserError, match=f"the module '{MODULE}', whose code would run"):
        evaluate(EvalConfig(str(folder), str(tmp_path / "out")))
    with pytest.raises(UserError, match="--trust_modules"):
        load_predictor(str(folder), candidates="task")
    # Whoever needs no task need not consent.
    assert load_predictor(str(folder)).labels(["a"])
    assert not ran.exists()


def test_with_consent_it_is_imported(downloaded, tmp_path):
    folder, ran = downloaded
    with pytest.raises(UserError, match="declares no labels, or is not registered"):
        load_predictor(str(folder), candidates="task", trust_modules=True)
    assert ran.exists()
    ran.unlink()
    # It is imported already: its code does not run again, and no consent is needed.
    with pytest.raises(UserError, match="theirs"):
        evaluate(EvalConfig(str(folder), str(tmp_path / "out")))
    assert not ran.exists()


def test_modules_of_ours_need_no_consent_and_names_like_ours_do(tmp_path):
    source = loading.identify(str(toy.write_model_dir(tmp_path / "run")))
    for module, needs in (
        ("sbs_jax.tasks.no_such_one", False),
        ("sbs_jax.tasks_of_mine", True),
        ("sbs_jax_tasks", True),
    ):
        source.__dict__["settings"] = {"mixture_or_task_module": module}
        if needs:
            with pytest.raises(UserError, match="whose code would run"):
                source.task_module(trust=False)
        else:
            assert source.task_module(trust=False) == module


def test_the_flag_is_the_macro():
    assert ("TRUST_MODULES", "True") in parse_flags(["--trust_modules"]).gin
    assert parse_flags([]).gin == ()
