"""Compiling: the options of XLA, and what is kept on disk for the next start."""

import os
import platform
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax

from jaxresnet.files import cache_folder
from jaxresnet.hardware import instructions

# For a whole training step. Without them it takes more memory, and is slower (docs/performance.md).
CPU_COMPILER_OPTIONS = {
    # Otherwise XLA makes windows early, for concurrency, and keeps them all in memory.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # YNN, XLA's library for CPUs, multiplies matrices and nothing else. With DOT in place of INDIVIDUAL_DOT, products
    # of bfloat16 would become products of float32.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}


def compile_lowered(lowered: Any, backend: str) -> Callable[..., Any]:
    """Compile what `.lower` of `jax.jit` or `jax.pmap` gave, with the options that were measured to help.

    backend: "cpu", "gpu" or "tpu"; only the first has any. JAXRESNET_COMPILER_OPTIONS=0: none. Those that this version
    of XLA does not know are left out: the program runs as well without.
    """
    options: dict[str, Any] = {}
    if backend == "cpu" and os.environ.get("JAXRESNET_COMPILER_OPTIONS") != "0":
        options = dict(CPU_COMPILER_OPTIONS)
    while True:
        try:
            return cast(Callable[..., Any], lowered.compile(options))
        except jax.errors.JaxRuntimeError as e:
            unknown = [name for name in options if name in str(e)]
            if "No such compile option" not in str(e) or not unknown:
                raise
            for name in unknown:
                del options[name]


@contextmanager
def own_numerics() -> Iterator[None]:
    """JAX's settings that would change which numbers are drawn, or of which type they are, at JAX's defaults.

    Whatever the user's program or environment has set (JAX_ENABLE_X64, JAX_THREEFRY_PARTITIONABLE, ...): a run is its
    config, its seed included, and its data. The precision of products is the config's own field."""
    with (
        jax.enable_x64(False),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision(None),
        jax.disable_jit(False),
    ):
        yield


def use_compilation_cache() -> Path | None:
    """Keep compiled programs on disk, so that the next process that needs them starts without compiling.

    They are kept in the user's cache folder (on Linux $XDG_CACHE_HOME/jaxresnet or ~/.cache/jaxresnet), apart for each
    kind of processor, since a program for another may not run. JAX's own setting (JAX_COMPILATION_CACHE_DIR) goes
    before, and JAXRESNET_COMPILATION_CACHE=0 turns it off. Returns the folder, None where there is none. Call it before
    anything is compiled; the experiment scripts do. Nothing is ever removed there: delete the folder to win back the
    space.
    """
    if os.environ.get("JAXRESNET_COMPILATION_CACHE") == "0":
        return None
    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if chosen:
        return Path(chosen)
    kind = f"{platform.machine()}-{zlib.crc32(instructions().encode()):08x}"
    folder = cache_folder() / "compiled" / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a home that cannot be written to, as in some containers: compiling takes its time, that is all
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default only what took a second: a start of ours compiles some twenty small programs besides.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    return folder
