"""Which vocabulary T5X's model gets."""

import dataclasses

import pytest

from sbs_jax.data import settings as settings_lib
from sbs_jax.data.settings import DataSettings
from sbs_jax.errors import UserError

pytestmark = pytest.mark.t5x


@pytest.fixture(scope="module")
def vocabulary():
    import sbs_jax.tasks  # noqa: F401  (registers the tasks)
    from sbs_jax.t5x import vocabulary

    return vocabulary


def test_that_of_the_task(vocabulary):
    assert repr(vocabulary.of_task("svamp_joint_teacher")) == "DatasetVocabulary('svamp')"


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("svamp", {}, "'svamp' is a data set; T5X needs the name of a task: svamp_sbs"),
        ("svamp_sbx", {}, "no task 'svamp_sbx'; did you mean 'svamp_sbs'"),
        ("svamp_sbs", {"prefix_side": "decoder"}, "PREFIX_SIDE = 'decoder': T5X"),
        ("svamp_sbs", {"rationales_per_epoch": "one"}, "RATIONALES_PER_EPOCH = 'one': T5X"),
    ],
)
def test_what_t5x_cannot_do_is_one_sentence(vocabulary, name, changes, sentence):
    with (
        settings_lib.override(dataclasses.replace(DataSettings(), **changes)),
        pytest.raises(UserError, match=sentence),
    ):
        vocabulary.of_task(name)


def test_that_beside_a_checkpoint(vocabulary, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "huggingface"
    for path in (run / "vocabulary" / "spiece.model", folder / "spiece.model"):
        path.parent.mkdir(parents=True)
        path.touch()
    expected = str(run / "vocabulary" / "spiece.model")
    assert vocabulary.of_checkpoint(str(run / "checkpoint_20")) == expected
    assert vocabulary.of_checkpoint(str(run)) == expected
    assert vocabulary.of_checkpoint(str(folder)) == str(folder / "spiece.model")
    assert vocabulary.of_checkpoint(str(tmp_path / "elsewhere" / "checkpoint_2")) is None
    assert vocabulary.of_checkpoint(None) is None
