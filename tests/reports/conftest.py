import pytest

from tests.reports import synthetic


@pytest.fixture(scope="session")
def sweeps(tmp_path_factory):
    """Folders of four finished sweeps by name; tests only read them."""
    folder = tmp_path_factory.mktemp("sweeps")
    return {
        "lambda": synthetic.write_sweep(folder / "lambda", synthetic.LAMBDA),
        "fractions": synthetic.write_sweep(folder / "fractions", synthetic.FRACTIONS),
        "sizes": synthetic.write_sweep(folder / "sizes", synthetic.SIZE, task="svamp", teacher=0.6),
        "one_seed": synthetic.write_sweep(
            folder / "one_seed", {"METHOD": ("standard", "sbs"), "SEED": (0,)}
        ),
    }
