import pytest

from sbs_jax.reports.aggregate import aggregate
from sbs_jax.reports.published import published_tables
from sbs_jax.reports.reading import read_sweep
from tests.reports import synthetic


def _read(*folders):
    return aggregate([read_sweep(folder) for folder in folders])


def test_published_numbers_stand_beside_ours(sweeps):
    first, second = published_tables(_read(sweeps["sizes"]))
    assert first.columns[:3] == ("method", "e-SNLI, published", "e-SNLI, ours")
    published = [row[1::2] for row in first.rows]
    assert published == [
        ("88.38", "43.58", "62.19", "62.63"),
        ("89.12", "48.15", "63.25", "63.00"),
        ("89.51", "49.58", "63.29", "65.50"),
    ]
    assert second.rows[1][1::2] == ("88.88", "43.50", "61.37", "63.00")
    # Only SVAMP was trained on, with PaLM's rationales and without `joint`.
    ours = [row[2::2] for row in first.rows]
    assert [cells[:3] for cells in ours] == [("", "", "")] * 3
    assert ours[1][3] == ""
    results = _read(sweeps["sizes"])
    by = {(c.method, c.settings["MODEL"], c.settings["TRAIN_FRACTION"]): c
          for c in results.configurations}  # fmt: skip
    mean = by["sbs", "t5_1_1_base", 1.0].scores["test"]
    assert ours[2][3] == f"{100 * mean.mean:.2f} ± {100 * mean.standard_error:.2f} (2)"
    assert second.rows[1][-1] == ""
    assert any(
        "Ours on SVAMP: t5_1_1_base, 248 M parameters, trained from random parameters" in note
        for note in first.notes
    )


def test_other_data_sets_fill_no_published_cell(sweeps):
    for table in published_tables(_read(sweeps["fractions"])):
        assert all(cell == "" for row in table.rows for cell in row[2::2])


@pytest.mark.parametrize("axes", [
    {"RATIONALE_WEIGHT": (0.3,)}, {"TRAIN_FRACTION": (0.5,)}, {"LABEL_SOURCE": ("teacher",)},
    {"TEACHER": ("a teacher of one's own",)}, {"RATIONALE_SOURCE": ("human",)},
        {"TRAIN_EXAMPLES": (100,)},
])  # fmt: skip
def test_other_settings_fill_no_published_cell(tmp_path, axes):
    folder = synthetic.write_sweep(tmp_path / "s", axes | {"SEED": (0,)}, task="svamp")
    for table in published_tables(_read(folder)):
        assert all(cell == "" for row in table.rows for cell in row[2::2])


def test_neoxs_rationales_have_a_row_of_their_own(tmp_path):
    axes = {"TEACHER": ("GPT-NeoX 20B",), "SEED": (0, 1)}
    folder = synthetic.write_sweep(tmp_path / "s", axes, task="cqa")
    first, second = published_tables(_read(folder))
    assert [row[6] != "" for row in first.rows] == [False, True, False]
    assert all(row[6] == "" for row in second.rows)
