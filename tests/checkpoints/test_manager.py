"""Saving, keeping, restoring and refusing checkpoints (8 virtual devices)."""

import dataclasses
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sbs_jax import files
from sbs_jax.checkpoints import folders, store
from sbs_jax.checkpoints.manager import CheckpointManager, restore_params
from sbs_jax.errors import UserError
from tests import disks
from tests.training.toy_run import abstract_state, fresh_state, mesh_of, step_fn

MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]


@pytest.fixture(scope="module")
def states():
    """Eight different states on a 2 × 4 mesh, by step."""
    state, states = fresh_state(mesh_of(2, 4)), {}
    random = np.random.default_rng(0)
    for step in range(1, 9):
        batch = {name: random.standard_normal((8, 16), np.float32) for name in "xy"}
        state, _ = step_fn(state, batch)
        states[step] = jax.tree.map(jnp.copy, state)
    return states


@pytest.fixture(scope="module")
def saved_run(states, tmp_path_factory):
    """A MODEL_DIR with checkpoints 3 (the best), 7 and 8; copy it before changing it."""
    model_dir = tmp_path_factory.mktemp("run")
    with CheckpointManager(model_dir, keep=2, best_metric="validation/score") as manager:
        for step, state in states.items():
            manager.save(
                step,
                state,
                extra={"position": {"data": step}},
                metrics={"validation/score": -abs(step - 3.0)} if step % 2 else None,
            )
    return model_dir


@pytest.fixture
def model_dir(saved_run, tmp_path):
    return shutil.copytree(saved_run, tmp_path / "run")


def assert_equal(left, right):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), left, right
    )


def restore(model_dir, mesh=(1, 8)):
    with CheckpointManager(model_dir) as manager:
        return manager.restore_latest(abstract_state(mesh_of(*mesh)))


def biggest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_keeps_the_latest_and_the_best(saved_run):
    assert list(folders.complete_checkpoints(saved_run)) == [3, 7, 8]
    assert not list(saved_run.glob("*tmp*"))
    with CheckpointManager(saved_run, best_metric="validation/score") as manager:
        assert manager.steps() == [3, 7, 8]
        assert (manager.latest_step(), manager.best_step()) == (8, 3)
        assert manager.is_best({"validation/score": 0.5})
        assert not manager.is_best({"validation/score": -0.5})
        assert not manager.is_best({"validation/score": float("nan")})


@pytest.mark.parametrize(
    ("keep", "mode", "values", "kept"),
    [
        (1, "min", [2.0, 1.0, 3.0, 4.0], [2, 4]),
        (1, "max", [1.0, 1.0, 0.5, 0.5], [2, 4]),  # The later one of equals is kept.
        (1, "max", [1.0, float("nan"), None, 0.5], [1, 4]),
        (2, "max", [1.0, 2.0, 3.0, 4.0], [3, 4]),
        (None, "max", [1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4]),
    ],
)
def test_retention(states, tmp_path, keep, mode, values, kept):
    with CheckpointManager(tmp_path, keep=keep, best_metric="loss", best_mode=mode) as manager:
        for step, value in enumerate(values, start=1):
            manager.save(step, states[step], metrics={"loss": value})
    assert list(folders.complete_checkpoints(tmp_path)) == kept


def test_the_best_survives_a_restart(states, model_dir):
    with CheckpointManager(model_dir, keep=1, best_metric="validation/score") as manager:
        manager.save(9, states[1], metrics={"validation/score": -1.0})
    assert list(folders.complete_checkpoints(model_dir)) == [3, 9]


@pytest.mark.parametrize("mesh", MESHES)
def test_restores_onto_any_mesh(saved_run, states, mesh):
    restored = restore(saved_run, mesh)
    assert restored.step == 8
    assert restored.extra == {"position": {"data": 8}}
    assert_equal(restored.state, states[8])
    kernel = restored.state.params["dense"]["kernel"]
    assert kernel.sharding.mesh.shape == {"data": mesh[0], "model": mesh[1]}
    assert kernel.sharding.spec == PartitionSpec("data", "model")
    assert kernel.addressable_shards[0].data.shape == (16 // mesh[0], 16 // mesh[1])
    assert type(restored.state.opt_state[1][0]) is type(states[8].opt_state[1][0])


def test_a_state_may_be_donated_right_after_save(tmp_path):
    size = 512
    state = fresh_state(mesh_of(1, 8), size)
    change = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    expected = {}
    with CheckpointManager(tmp_path, keep=None) as manager:
        for step in range(1, 4):
            expected[step] = np.array(state.params["dense"]["kernel"])
            manager.save(step, state)
            for _ in range(5):
                state = change(state)
    abstract = abstract_state(mesh_of(1, 8), size).params
    for step, kernel in expected.items():
        params = restore_params(tmp_path / f"checkpoint_{step}", abstract)
        np.testing.assert_array_equal(params["dense"]["kernel"], kernel)


def test_restores_the_parameters_alone(model_dir, states, monkeypatch):
    abstract = abstract_state(mesh_of(8, 1)).params
    monkeypatch.chdir(model_dir.parent)
    for path, step in [
        ("run", 8),
        (model_dir, 8),
        ("run/checkpoint_7", 7),
        (model_dir / "best", 3),
    ]:
        assert_equal(restore_params(path, abstract), states[step].params)
    # The rest of the state is not even read.
    shutil.rmtree(model_dir / "checkpoint_8" / "training")
    assert_equal(restore_params(model_dir, abstract), states[8].params)


def test_a_relative_model_dir_stays_where_it_was(states, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with CheckpointManager("runs/one") as manager:
        monkeypatch.chdir("/")
        manager.save(1, states[1])
    assert list(folders.complete_checkpoints(tmp_path / "runs" / "one")) == [1]


def test_without_a_checkpoint(tmp_path):
    assert restore(tmp_path / "new") is None
    for path, words in [
        (tmp_path / "new", "holds no complete checkpoint"),
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "new" / "best", "no checkpoint was kept as the best"),
    ]:
        with pytest.raises(UserError, match=words):
            restore_params(path, {})


def with_params(state, params):
    return dataclasses.replace(state, params=params)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: with_params(s, {**s.params, "scale": jax.ShapeDtypeStruct((4,), "float32")}),
            r"checkpoint_8: does not fit: the shape of parameter scale is \[16\] in this "
            r"checkpoint but \[4\] in this run; use the MODEL",
        ),
        (
            lambda s: with_params(s, {**s.params, "bias": s.params["scale"]}),
            r"parameter bias is missing in this checkpoint but \[16\] in this run",
        ),
        (
            lambda s: with_params(s, {"dense": s.params["dense"]}),
            r"parameter scale is \[16\] in this checkpoint but missing in this run",
        ),
        (
            lambda s: dataclasses.replace(s, opt_state=(s.opt_state[0],)),
            r"optimizer's opt_state/1/0/count is \[\] in this checkpoint but missing .* OPTIMIZER",
        ),
    ],
)
def test_refuses_an_incompatible_checkpoint(saved_run, change, words):
    with (
        CheckpointManager(saved_run) as manager,
        pytest.raises(UserError, match=words),
    ):
        manager.restore_latest(change(abstract_state(mesh_of(1, 8))))
    assert list(folders.complete_checkpoints(saved_run)) == [3, 7, 8]


def test_names_the_first_of_several_differences(saved_run):
    with pytest.raises(UserError, match=r"dense/kernel is \[16, 16\] .* but \[8, 8\] in this run"):
        restore_params(saved_run, abstract_state(mesh_of(1, 8), size=8).params)


def damage_data(folder, change):
    for file in (folder / "params").rglob("d/*"):
        file.write_bytes(change(file.read_bytes()))


def flip_a_bit(content, place=0.5):
    place = int(len(content) * place)
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def cut_short(folder):
    damage_data(folder, lambda content: content[: len(content) // 2])


DAMAGE = {
    "a flipped bit": lambda folder: damage_data(folder, flip_a_bit),
    "a file cut short": cut_short,
    "a missing file": lambda folder: biggest_file(folder / "training").unlink(),
    "a missing item": lambda folder: shutil.rmtree(folder / "params"),
    "torn JSON": lambda folder: (folder / "info" / "metadata").write_text('{"step":'),
    "other JSON": lambda folder: (folder / "info" / "metadata").write_text("[]"),
    "torn metadata": lambda folder: (folder / "params" / "_METADATA").write_text("{"),
    "all files empty": lambda folder: [
        file.write_bytes(b"") for file in folder.rglob("*") if file.is_file()
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_falls_back_from_a_damaged_checkpoint(model_dir, states, damage, caplog, capfd):
    DAMAGE[damage](model_dir / "checkpoint_8")
    with (
        caplog.at_level(logging.WARNING),
        CheckpointManager(model_dir, best_metric="validation/score") as manager,
    ):
        restored = manager.restore_latest(abstract_state(mesh_of(1, 8)))
        assert restored.step == 7
        assert_equal(restored.state, states[7])
        assert manager.steps() == [3, 7]
    assert [r.message for r in caplog.records if "checkpoint_8.unreadable" in r.message]
    assert (model_dir / "checkpoint_8.unreadable").is_dir()
    # One sentence is enough: none of Orbax's own tracebacks.
    assert "Traceback" not in capfd.readouterr().err


def test_a_damaged_step_can_be_done_again(model_dir, states):
    for _ in range(2):
        cut_short(model_dir / "checkpoint_8")
        with CheckpointManager(model_dir, keep=2) as manager:
            assert manager.restore_latest(abstract_state(mesh_of(1, 8))).step == 7
            manager.save(8, states[8])
        assert list(folders.complete_checkpoints(model_dir)) == [7, 8]
    assert_equal(restore(model_dir).state, states[8])
    assert (model_dir / "checkpoint_8.unreadable.1").is_dir()


@pytest.mark.parametrize("mesh", [(8, 1), (1, 8)])
def test_notices_a_bit_flipped_in_the_values(tmp_path, mesh):
    """Orbax alone restores a wrong number here, without a word."""
    size = 256
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, fresh_state(mesh_of(1, 1), size))
    file = biggest_file(tmp_path / "checkpoint_1" / "params")
    file.write_bytes(flip_a_bit(file.read_bytes(), place=0.3))
    with pytest.raises(UserError, match=r"damaged .* parameter dense/kernel is not what was saved"):
        restore_params(tmp_path, abstract_state(mesh_of(*mesh), size).params)


def test_all_checkpoints_damaged(model_dir):
    for step in (3, 7, 8):
        cut_short(model_dir / f"checkpoint_{step}")
    with pytest.raises(UserError, match="none of the 3 checkpoints can be read"):
        restore(model_dir)
    assert list(folders.complete_checkpoints(model_dir)) == [3, 7, 8]
    with pytest.raises(UserError, match="checkpoint_8: damaged"):
        restore_params(model_dir, abstract_state(mesh_of(1, 8)).params)


def test_ignores_and_removes_what_a_kill_left(model_dir, states):
    shutil.copytree(model_dir / "checkpoint_8", model_dir / "checkpoint_12.orbax-checkpoint-tmp-17")
    shutil.copytree(model_dir / "checkpoint_8", model_dir / "checkpoint_12")
    (model_dir / "checkpoint_12" / "commit_success.txt").unlink()
    (model_dir / "checkpoint_notes").mkdir()
    (model_dir / "predictions").mkdir()
    abstract = abstract_state(mesh_of(1, 8)).params
    # A reader leaves them alone: the run may be alive.
    assert_equal(restore_params(model_dir, abstract), states[8].params)
    assert (model_dir / "checkpoint_12").exists()
    with pytest.raises(UserError, match="never finished"):
        restore_params(model_dir / "checkpoint_12", abstract)
    with CheckpointManager(model_dir, keep=3) as manager:
        assert manager.steps() == [3, 7, 8]
        manager.save(12, states[1])
    assert sorted(f.name for f in model_dir.iterdir()) == [
        "checkpoint_12", "checkpoint_7", "checkpoint_8", "checkpoint_notes", "predictions",
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_never_saves_poisoned_parameters(model_dir, states, bad):
    params = {**states[8].params, "scale": states[8].params["scale"].at[3].set(bad)}
    with (
        CheckpointManager(model_dir) as manager,
        pytest.raises(UserError, match=r"Step 9: scale holds NaN .* checkpoint: see .*ckpoint_8"),
    ):
        manager.save(9, with_params(states[8], params))
    assert list(folders.complete_checkpoints(model_dir)) == [3, 7, 8]


def test_never_saves_a_poisoned_optimizer(tmp_path, states):
    def with_moment(value):
        clip, (adam, *rest) = states[1].opt_state
        adam = adam._replace(mu={**adam.mu, "scale": adam.mu["scale"].at[0].set(value)})
        return dataclasses.replace(states[1], opt_state=(clip, (adam, *rest)))

    with CheckpointManager(tmp_path) as manager:
        with pytest.raises(UserError, match="Step 1: opt_state/1/0/mu/scale holds NaN"):
            manager.save(1, with_moment(jnp.nan))
        manager.save(2, with_moment(jnp.inf))
    assert list(folders.complete_checkpoints(tmp_path)) == [2]


def test_a_saved_step_is_left_alone(model_dir, states):
    with CheckpointManager(model_dir) as manager:
        manager.save(8, states[1])
    assert_equal(restore(model_dir).state, states[8])


def test_bfloat16_and_integers(tmp_path):
    state = fresh_state(mesh_of(1, 8))
    params = {
        "half": jnp.linspace(-3, 3, 24, dtype=jnp.bfloat16).reshape(4, 6),
        "flags": jnp.array([True, False]),
        "small": jnp.arange(5, dtype=jnp.int8),
    }
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, with_params(state, params))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    restored = restore_params(tmp_path, abstract)
    assert_equal(restored, params)
    assert restored["half"].dtype == jnp.bfloat16
    # A wider type is cast to, and not taken for damage.
    abstract["half"] = jax.ShapeDtypeStruct((4, 6), jnp.float32)
    np.testing.assert_array_equal(
        restore_params(tmp_path, abstract)["half"], params["half"].astype(jnp.float32)
    )


def test_info_is_plain_json(saved_run):
    info = json.loads((saved_run / "checkpoint_7" / "info" / "metadata").read_text())
    assert info["step"] == 7
    assert info["metrics"] == {"validation/score": -4.0}
    assert set(info["digests"]["params"]) == {"dense/kernel", "scale"}


def test_says_nothing(states, tmp_path, capfd):
    with CheckpointManager(tmp_path, best_metric="loss") as manager:
        manager.save(1, states[1])
        manager.save(2, states[2], metrics={"loss": 1.0})
    restore(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"keep": 0}, "KEEP_CHECKPOINTS = 0"), ({"best_mode": "best"}, "BEST_MODE = 'best'")],
)
def test_bad_arguments(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        CheckpointManager(tmp_path, **arguments)


def test_a_model_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"MODEL_DIR .*file: cannot be written to"):
        CheckpointManager(tmp_path / "file")


def test_a_model_dir_that_is_read_only():
    with disks.read_only_folder() as folder:
        with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\)"):
            CheckpointManager(folder / "run")
        # Training takes this lock before it writes anything.
        with (
            pytest.raises(UserError, match=r"train\.lock: cannot be written \(Permission denied\)"),
            files.locked(folder / "train.lock"),
        ):
            pass


def test_a_metric_that_does_not_exist(model_dir):
    with (
        CheckpointManager(model_dir, best_metric="validation/acuracy") as manager,
        pytest.raises(UserError, match=r"'validation/acuracy' is not among .* validation/accuracy"),
    ):
        manager.is_best({"validation/accuracy": 1.0})


def test_a_full_disk_is_told_in_a_sentence(tmp_path, states, monkeypatch):
    with CheckpointManager(tmp_path / "run") as manager:

        def fail(*args, **kwargs):
            raise ValueError(
                'RESOURCE_EXHAUSTED: Error writing "step/0" in OCDBT database: Failed to write 285 '
                "bytes to file 8: No space left on device [os_error_code='28']"
            )

        monkeypatch.setattr(store.Steps, "save", fail)
        words = r"MODEL_DIR .*run: a checkpoint cannot be written \(No space left on device\)\.$"
        with pytest.raises(UserError, match=words):
            manager.save(1, states[1])
        monkeypatch.undo()
        # A mistake of the program's is no sentence.
        with pytest.raises(ValueError, match="zero size"):
            manager.save(2, with_params(states[1], {"empty": jnp.zeros((0, 3))}))
