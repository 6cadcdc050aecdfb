"""Setting this process up before JAX starts: logging, the compilation cache, other processes."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from sbs_jax import remote_copies
from sbs_jax.configuration.flags import Flags
from sbs_jax.host_memory import keep_freed_memory
from sbs_jax.partitioning import peers

_CACHE_OFF = "off"

log = logging.getLogger(__name__)


def set_up(flags: Flags) -> None:
    """Does all of this module, in the order in which it has to be done.

    Raises:
      UserError: the processes cannot be joined.
    """
    configure_logging(flags.verbosity)
    # Before anything slow: the others wait, and want to know if this process dies.
    peers.meet(flags.coordinator_address, flags.process_count, flags.process_index)
    keep_freed_memory()
    enable_compilation_cache(flags.compilation_cache_dir)
    from sbs_jax.partitioning import distributed

    distributed.initialize(flags.coordinator_address, flags.process_count, flags.process_index)
    if flags.coordinator_address is not None:
        peers.watch()


def configure_logging(verbosity: str) -> None:
    """Logs to standard error; other libraries' lines only from warnings on, or with `debug`."""
    level = getattr(logging, verbosity.upper())
    # Other libraries say a lot; their warnings are enough unless asked.
    logging.basicConfig(
        level=level if verbosity in ("debug", "error") else logging.WARNING,
        format="%(message)s" if verbosity != "debug" else "%(levelname).1s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("sbs_jax").setLevel(level)


def enable_compilation_cache(folder: str | None = None) -> None:
    """Lets JAX keep compiled programs on disk, so that a second start is quick.

    Args:
      folder: where; `off` keeps none. By default `$JAX_COMPILATION_CACHE_DIR`, else
        `sbs_jax/compiled` in `$XDG_CACHE_HOME`, else in `~/.cache`. JAX's own
        `JAX_ENABLE_COMPILATION_CACHE=0` works as well.
    """
    import jax

    if folder == _CACHE_OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if folder is None and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return  # JAX reads it by itself.
    path = cache_folder() if folder is None else Path(folder).expanduser()
    if not is_writable(path):
        log.warning("No compilation cache: %s is not writable.", path)
        return
    jax.config.update("jax_compilation_cache_dir", str(path.resolve()))


def cache_folder() -> Path:
    """Where compiled programs are kept unless a flag says otherwise."""
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(own) if own else remote_copies.cache_root() / "compiled"


def is_writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK)
    except OSError:
        return False
