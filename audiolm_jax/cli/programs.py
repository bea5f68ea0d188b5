"""Compiled programs, kept between commands.

`train`, `compare` and the others with a workdir of their own keep them beside the run, in WORKDIR/compiled. `generate`
and `codec` keep them for the user: in audiolm_jax/xla below $XDG_CACHE_HOME (~/.cache), at most MOST bytes, the least
recently used are dropped first. A lock guards it, so that commands may run at the same time. jax's own variables decide
where they are set: JAX_ENABLE_COMPILATION_CACHE=false switches it off, JAX_COMPILATION_CACHE_DIR names another folder.
"""

import argparse
import hashlib
import os
import platform
from pathlib import Path

SHARED = ("generate", "codec")  # commands that make no run
MOST = 1 << 30


def keep(options: argparse.Namespace) -> None:
    """Chooses the cache of this process by its command."""
    shared, workdir = options.command in SHARED, getattr(options, "workdir", None)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or not (shared or workdir):
        return
    folder = shared_folder() if shared else workdir / "compiled"
    if folder is None:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0 if shared else 0.3)
    if shared:
        jax.config.update("jax_compilation_cache_max_size", MOST)


def shared_folder() -> Path | None:
    """The user's cache for processors like this one; None if it cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
        folder = base / "audiolm_jax" / "xla" / processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return folder if os.access(folder, os.W_OK) else None


def processor() -> str:
    """A name for the instruction set: machine code of a processor that can do more would stop on one that cannot, and a
    home may be shared by both."""
    about = [platform.machine()]
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            about += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("".join(about).encode()).hexdigest()[:12]
