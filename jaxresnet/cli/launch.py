"""Several processes of one script on this machine, which share its runs: `python -m jaxresnet launch`.

Each gets the environment by which `processes.initialize` finds the others, and its share of the GPUs.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from jaxresnet.errors import ConfigError
from jaxresnet.training.processes import LIFELINE

SECONDS_TO_END = 45  # for the others, after one has failed; then they are killed
SECONDS_TO_HEAR = 3  # for the others, after one has ended as it was asked to; then they are asked, too
EXIT_INTERRUPTED = 75  # "temporary failure, try again" of sysexits.h, which nothing else exits with: resume me
ASKED = (EXIT_INTERRUPTED, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # how a process ends that was asked to
COMMAND = "JAXRESNET_COMMAND"  # the launcher's own command, which continues an interrupted run


def main(argv: Sequence[str]) -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxresnet launch",
        description="Start several processes of a script on this machine, which share every batch of its runs. Ctrl-C "
        "and SIGTERM stop all after the same step, and the same command continues.",
        epilog="Where the scheduler starts the processes (SLURM, Kubernetes, TPU pods), see docs/scaling.md.",
    )
    parser.add_argument(
        "--processes", type=int, required=True, metavar="N", help="how many; GPUs are divided among them"
    )
    parser.add_argument(
        "--devices-per-process", type=int, metavar="M", help="train on the CPU, each process with M virtual devices"
    )
    parser.add_argument("script", help="an experiment script, then its own flags: experiments/adam_lookahead.py --demo")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    return launch([options.script, *options.flags], options.processes, options.devices_per_process)


def launch(command: Sequence[str], processes: int, devices_per_process: int | None = None) -> int:
    """Run `python *command` in so many processes, and return the exit status of the first that failed, or 0.

    That of one killed by a signal is 128 and the signal's number; of those that were asked to end, and did, it is
    EXIT_INTERRUPTED. The output of process 0 is left as it is; what the others print goes to stderr, each line after
    the number of its process. When one fails and the others do not end within SECONDS_TO_END, they are killed. When
    this process ends, however that is, they stop as if asked to. Raises ConfigError for numbers that cannot be.
    """
    own_environments = environments_of(processes, devices_per_process, os.environ)
    theirs, ours = os.pipe()  # the system closes ours with this process
    common = {COMMAND: shlex.join(sys.orig_argv), LIFELINE: str(theirs)}
    environments = [{**os.environ, **own, **common} for own in own_environments]
    children: list[subprocess.Popen] = []
    printers = []
    try:
        with _signals_passed_to(children) as was_asked:
            for rank, environment in enumerate(environments):
                # A session of its own: Ctrl-C on the terminal reaches this process alone, which passes it on, once.
                child = subprocess.Popen(
                    [sys.executable, *command],
                    env=environment,
                    start_new_session=True,
                    stdout=subprocess.PIPE if rank else None,
                    stderr=subprocess.STDOUT if rank else None,
                    stdin=subprocess.DEVNULL if rank else None,
                    pass_fds=(theirs,),
                )
                children.append(child)
                if child.stdout:
                    printers.append(threading.Thread(target=_prefix, args=(child.stdout, rank)))
                    printers[-1].start()
            if was_asked():  # before all were there to hear of it
                for child in children:
                    child.terminate()
            status = _wait(children, was_asked)
    finally:
        for child in children:
            child.kill()  # does nothing to one that has ended
        os.close(theirs)
        os.close(ours)
    for printer in printers:
        printer.join()
    return status


def environments_of(
    processes: int, devices_per_process: int | None, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """The variables of each process, to be set on top of `environment`."""
    if processes < 1:
        raise ConfigError(f"--processes {processes}: must be at least 1")
    if devices_per_process is not None and devices_per_process < 1:
        raise ConfigError(f"--devices-per-process {devices_per_process}: must be at least 1")
    address = f"127.0.0.1:{_free_port()}"
    common = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # else it listens to the whole network
        "JAX_NUM_PROCESSES": str(processes),
    }
    if devices_per_process is not None:
        flag = f"--xla_force_host_platform_device_count={devices_per_process}"
        common |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{environment.get('XLA_FLAGS', '')} {flag}".strip()}
        gpus = []
    else:
        gpus = [] if environment.get("JAX_PLATFORMS") == "cpu" else _visible_gpus(environment)
    if len(gpus) % processes:
        raise ConfigError(
            f"--processes {processes}: the {len(gpus)} GPUs cannot be divided among them; choose a divisor, name "
            "the GPUs in CUDA_VISIBLE_DEVICES, or train on the CPU with --devices-per-process 1"
        )
    share = len(gpus) // processes
    own = [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share : (i + 1) * share])} if gpus else {} for i in range(processes)
    ]
    return [{**common, "JAX_PROCESS_ID": str(rank), **own[rank]} for rank in range(processes)]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Those that a process started now would see, as CUDA names or numbers them."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [gpu for gpu in environment["CUDA_VISIBLE_DEVICES"].split(",") if gpu not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]


def _prefix(stream: IO[bytes], rank: int) -> None:
    for line in stream:
        sys.stderr.buffer.write(b"[%d] %s\n" % (rank, line.rstrip(b"\n")))
        sys.stderr.flush()


@contextmanager
def _signals_passed_to(children: Sequence[subprocess.Popen]) -> Iterator[Callable[[], bool]]:
    """The first goes to process 0, which tells the others; further ones to all. Yields whether there was one."""
    passed = 0

    def pass_on(signum: int, frame: object) -> None:
        nonlocal passed
        passed += 1
        for child in children if passed > 1 else children[:1]:
            child.send_signal(signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)

    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not under nohup
        signals.append(signal.SIGHUP)  # the terminal is gone
    before = {s: signal.signal(s, pass_on) for s in signals}
    try:
        yield lambda: passed > 0
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _wait(children: Sequence[subprocess.Popen], was_asked: Callable[[], bool]) -> int:
    """Wait for all, and return the exit status of the first that failed."""
    first, deadline, hear = 0, float("inf"), float("inf")
    running = dict(enumerate(children))
    while running:
        time.sleep(0.05)
        for rank, child in list(running.items()):
            code = child.poll()
            if code is None:
                continue
            del running[rank]
            status = code if code >= 0 else 128 - code
            as_asked = was_asked() and status in ASKED
            if code < 0 and not as_asked:
                name = f"process {rank} of {len(children)} (pid {child.pid})"
                print(f"error: {name} was killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
            if code and not first:
                first = EXIT_INTERRUPTED if as_asked else status
                deadline = time.monotonic() + SECONDS_TO_END
                hear = time.monotonic() + SECONDS_TO_HEAR if as_asked else hear
        if running and time.monotonic() > hear:  # while they start, they hear of nothing else
            for child in running.values():
                child.terminate()
            hear = float("inf")
        if running and time.monotonic() > deadline:
            numbers = ", ".join(map(str, running))
            print(f"error: process {numbers} did not end with the others: killed", file=sys.stderr, flush=True)
            for child in running.values():
                child.kill()
            deadline = float("inf")
    return first
