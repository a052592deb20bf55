"""Runs over teams of devices: each team has one at a time."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from queue import Queue

import jax

from jaxresnet.errors import ConfigError
from jaxresnet.training.fit import Interrupted
from jaxresnet.training.processes import several


def spread_over(
    runs: Sequence[tuple[str, int]],
    teams: Sequence[Sequence[jax.Device]],
    run: Callable[[str, int, Sequence[jax.Device], Callable[[], bool]], None],
    should_stop: Callable[[], bool],
) -> None:
    """Call run(arm, seed, team, should_stop) for every run, each team of devices with one at a time.

    When one raises, or Ctrl-C is pressed, the others stop as if asked to, with their checkpoints saved, and the error
    is raised.
    """
    if len(teams) == 1:
        for arm, seed in runs:
            run(arm, seed, teams[0], should_stop)
        return
    free: Queue[Sequence[jax.Device]] = Queue()
    for team in teams:
        free.put(team)
    failed = threading.Event()

    def take_turn(arm: str, seed: int) -> None:
        team = free.get()
        try:
            run(arm, seed, team, lambda: failed.is_set() or should_stop())
        except BaseException:
            failed.set()
            raise
        finally:
            free.put(team)

    with ThreadPoolExecutor(len(teams)) as pool:
        turns = []
        try:
            turns += [pool.submit(take_turn, arm, seed) for arm, seed in runs]
            wait(turns)
        except BaseException:  # Ctrl-C, which only this thread hears of
            failed.set()
            raise
    errors = [error for turn in turns if (error := turn.exception())]
    for error in sorted(errors, key=lambda e: isinstance(e, Interrupted)):  # what failed before what was stopped
        raise error


def check_spread(spread: str) -> None:
    """Raise ConfigError for a way of sharing that there is not, or not here."""
    if spread not in ("data", "runs"):
        raise ConfigError(f"spread={spread!r}: must be 'data' or 'runs'")
    if spread == "runs" and several():
        raise ConfigError(
            "a run for each device (--devices runs) needs one process that has all devices: leave `launch` out; on "
            "several machines give each its own seeds and its own output folder (--seeds, --out)"
        )
