"""The mains as a user starts them: processes, flags, and the small run that tests train."""

import os
import socket
import subprocess
import sys

from tests.paths import ROOT

TINY = """
from __gin__ import dynamic_registration
from sbs_jax.models import config

include 'models/t5_1_1.gin'
include 'optimizers/adamw.gin'
include 'tasks/svamp.gin'
include 'runs/train.gin'

config.T5Config:
  vocab_size = 512
  emb_dim = 16
  num_heads = 2
  num_encoder_layers = 1
  num_decoder_layers = 1
  head_dim = 8
  mlp_dim = 32
"""


def run(module, *flags, devices=1, wait=True, check=True, **options):
    """Starts `python -m sbs_jax.{module}`; returns the process, finished if `wait`."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", f"sbs_jax.{module}", *map(str, flags)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    if wait:
        process.output, process.errors = process.communicate(timeout=570)
        if check:
            assert process.returncode == 0, process.errors[-3000:]
    return process


def macros(**values):
    """`macros(BATCH_SIZE=8)` → `["--gin.BATCH_SIZE=8"]`."""
    return [f"--gin.{name}={value}" for name, value in values.items()]


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]
