from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from sbs_jax.experiments import hparams
from sbs_jax.experiments.runs import SweepFolder
from tests.training.events import events_of


def test_runs_with_a_score_are_written_with_what_they_bind(tmp_path):
    sweep = SweepFolder(tmp_path)
    for seed, accuracy in enumerate((0.25, 0.5, None)):
        bindings = {"SEED": seed, "METHOD": "sbs", "TASK_FEATURE_LENGTHS": {"inputs": 3}}
        validation = None if accuracy is None else {"accuracy": accuracy}
        sweep.write_record(f"seed={seed}", bindings=bindings, validation=validation)
    names = [f"seed={seed}" for seed in range(3)]
    for _ in range(2):  # Written anew, not added to.
        assert hparams.write(sweep, names) == 2
    assert sorted(p.name for p in (tmp_path / "tensorboard").iterdir() if p.is_dir()) == names[:2]
    (tmp_path / "one").mkdir()
    (tmp_path / "tensorboard" / "seed=1").rename(tmp_path / "one" / "tensorboard")
    events = events_of(tmp_path / "one")
    values = [value for event in events for value in event.summary.value]
    assert {v.tag: v.simple_value for v in values}["validation/accuracy"] == 0.5
    starts = [
        HParamsPluginData.FromString(v.metadata.plugin_data.content).session_start_info
        for v in values
        if v.metadata.plugin_data.plugin_name == "hparams"
    ]
    settings = next(start.hparams for start in starts if len(start.hparams))
    assert settings["SEED"].number_value == 1.0
    assert settings["METHOD"].string_value == "sbs"
    assert settings["TASK_FEATURE_LENGTHS"].string_value == "{'inputs': 3}"


def test_a_sweep_without_scores_writes_nothing(tmp_path):
    assert hparams.write(SweepFolder(tmp_path), ["a"]) == 0
    assert not (tmp_path / "tensorboard").exists()
