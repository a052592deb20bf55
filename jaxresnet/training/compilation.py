"""Compiling: XLA's options, what is kept on disk for the next start, and one program for many devices."""

import io
import os
import platform
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from platformdirs import user_cache_path

from jaxresnet.hardware import instructions
from jaxresnet.nn.cpu.conv import CPU_COMPILER_OPTIONS

# Options that were measured to help, by backend; those in XLA_FLAGS hold besides them. GPU and TPU have none: none has
# been measured there yet (benchmarks/xla_options.py does).
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"cpu": CPU_COMPILER_OPTIONS}


def compiler_options(backend: str) -> dict[str, Any]:
    """XLA's options for programs of a backend ("cpu", "gpu", "tpu"). JAXRESNET_COMPILER_OPTIONS=0: none."""
    return {} if os.environ.get("JAXRESNET_COMPILER_OPTIONS") == "0" else COMPILER_OPTIONS.get(backend, {})


def compile_lowered(lowered: Any, backend: str) -> Callable[..., Any]:
    """Compile what `.lower` of `jax.jit` or `jax.pmap` gave, with the options of `backend`, but for those that this
    version of XLA does not know: the program runs as well without."""
    options = dict(compiler_options(backend))
    while True:
        try:
            return cast(Callable[..., Any], lowered.compile(options))
        except jax.errors.JaxRuntimeError as e:
            unknown = [name for name in options if name in str(e)]
            if "No such compile option" not in str(e) or not unknown:
                raise
            for name in unknown:
                del options[name]


def use_compilation_cache() -> Path | None:
    """Keep compiled programs on disk, so that the next process that needs them starts without compiling.

    They are kept in $XDG_CACHE_HOME/jaxresnet, or ~/.cache/jaxresnet, in a folder for processors like this one, since
    a program for another may not run. JAX's own setting (JAX_COMPILATION_CACHE_DIR) goes before, and
    JAXRESNET_COMPILATION_CACHE=0 turns it off. Returns the folder, None where there is none. Call it before anything is
    compiled; the experiment scripts do. Nothing is ever removed there: delete the folder to win back the space.
    """
    if os.environ.get("JAXRESNET_COMPILATION_CACHE") == "0":
        return None
    chosen = getattr(jax.config, "jax_compilation_cache_dir", None)
    if chosen:
        return Path(chosen)
    folder = (
        user_cache_path("jaxresnet") / "compiled" / f"{platform.machine()}-{zlib.crc32(instructions().encode()):08x}"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # a home that cannot be written to, as in some containers: compiling takes its time, that is all
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default only what took a second: a start of ours compiles some twenty small programs besides.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    return folder


class CompiledOnce:
    """A program that is compiled for the first device that needs it, and copied to others like it.

    The same program is compiled anew by JAX for every device it is to run on. With a run on each of eight devices that
    would be eight times the wait before the first step. One that was found on disk cannot be copied: where XLA:CPU
    serialises it a second time, functions are missing from it. Then the others are looked for on disk, too, and
    compiled where they are not there.
    """

    def __init__(self) -> None:
        self._first: tuple[Any, tuple[jax.Device, ...]] | None = None
        self._from_disk = False
        self._lock = threading.Lock()  # runs on several devices start at the same time

    def get(self, devices: tuple[jax.Device, ...], compile_it: Callable[[], Any]) -> Any:
        with self._lock:
            if self._first is not None:
                compiled, first_devices = self._first
                if first_devices == devices:
                    return compiled
                try:
                    if not self._from_disk:
                        return _copy(compiled, first_devices, devices)
                except Exception as e:  # private parts of JAX, which may change
                    warnings.warn(f"every device compiles for itself: {type(e).__name__}: {e}", stacklevel=2)
            found_before = _found_on_disk()[threading.get_ident()]
            compiled = compile_it()
            if self._first is None:
                self._first = compiled, devices
                self._from_disk = _found_on_disk()[threading.get_ident()] > found_before
            return compiled


@cache
def _found_on_disk() -> Counter:
    """How many programs each thread has found on disk, counted from the first call on."""
    found: Counter = Counter()

    def listener(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            found[threading.get_ident()] += 1

    jax.monitoring.register_event_listener(listener)
    return found


def _copy(compiled: Any, devices: tuple[jax.Device, ...], to: tuple[jax.Device, ...]) -> Any:
    """A compiled program for other devices of the same kind and number, by way of its serialised form.

    `serialize_executable.deserialize_and_load` would do, but that it takes the program back to its own devices.
    """
    from jax._src import compiler
    from jax.experimental import serialize_executable

    class Unpickler(serialize_executable._JaxPjrtUnpickler):
        def persistent_load(self, pid: Any) -> Any:
            if pid[0] == "exec":
                return self.backend.deserialize_executable(pid[1], self.execution_devices, options)
            return super().persistent_load(pid)

    options = compiler.get_compile_options(
        num_replicas=1, num_partitions=len(to), device_assignment=np.array([[device.id for device in to]])
    )
    serialised, in_tree, out_tree = serialize_executable.serialize(compiled)
    unpickler = Unpickler(io.BytesIO(serialised), to[0].client, to)
    unpickler.devices_by_id = {old.id: new for old, new in zip(devices, to, strict=True)}
    executable, args_info, no_kwargs = unpickler.load()
    copy = jax.stages.Compiled(executable.load(), [], in_tree.unflatten(args_info), out_tree, no_kwargs=no_kwargs)
    loaded: Any = copy.runtime_executable()
    if loaded.local_devices() != list(to):
        raise NotImplementedError("this backend takes a program back to the devices that it was compiled for")
    return copy
