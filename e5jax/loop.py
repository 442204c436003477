"""The loop around the step: read, run, write down, measure, save; stop cleanly when asked to."""

import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np

from e5jax import distributed, files
from e5jax.batch import Batch
from e5jax.checkpoint import Checkpoints
from e5jax.errors import FailedError
from e5jax.logbook import Logbook, NoLogbook, Progress
from e5jax.watchdog import within


class NonFiniteLossError(FailedError):
    """The loss or the gradient is not a number, and not for the first time; the run stopped before saving."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the loop does when."""

    steps: int
    eval_every: int
    checkpoint_every: int
    profile: tuple[int, int] | None
    """First and last step of an XProf trace."""
    skip_non_finite: int
    """Steps in a row without a finite loss that are left out."""
    limit_s: float | None
    """Seconds that a step, an evaluation or a save may take; see watchdog.py."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop puts together."""

    step: Callable
    """(state, frozen, batch) -> (state, metrics)"""
    to_devices: Callable[[Batch], Batch]
    evaluate: Callable[..., dict[str, float]] | None
    """(params, frozen) -> metrics; None without held-out sets."""
    learning_rates: np.ndarray
    """Of every step, on the host: a device that is asked for one answers when the step under way has ended."""
    examples: Callable[[int], list[str]]
    """Where the examples of a step came from."""
    seconds_per_token: float
    """At the devices' peak, without recomputation."""


def run(
    plan: Plan,
    parts: Parts,
    state,
    frozen,
    batches: Iterator[Batch],
    done: int,
    workdir: Path,
    logbook: Logbook | NoLogbook,
    checkpoints: Checkpoints,
):
    """Steps done + 1 … plan.steps -> the last state.

    Raises NonFiniteLossError where too many losses in a row are not finite, SystemExit after a signal, once saved.
    """
    clock = _Clock()
    limited = partial(within, plan.limit_s)
    not_finite = _NotFinite(workdir, plan.skip_non_finite)

    def record(number, metrics, tokens):
        with limited(f"step {number}"):
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if said := not_finite.seen(number, metrics, parts.examples):
            progress.left_out(said)
            clock.lap()
            return
        speed = tokens / clock.lap()
        row = {
            "step": number,
            **metrics,
            "learning_rate": float(parts.learning_rates[number - 1]),
            "tokens": tokens,
            "tokens_per_second": speed,
            "utilization": speed * parts.seconds_per_token,
        }
        logbook.write(row)
        progress.step(row)

    def evaluate(number):
        if parts.evaluate is not None:
            with limited(f"the evaluation after step {number}"):
                row = {"step": number, **parts.evaluate(state.params, frozen)}
            logbook.write(row)
            progress.say(f"step {number}: held-out nDCG@10 {row['eval/ndcg@10']:.4f}")
        clock.lap()  # evaluating is not training time

    asked = _Asked()
    profile = _Profile(plan.profile, workdir / "profile")
    with asked.listening(), contextlib.closing(profile), contextlib.closing(Progress(plan.steps, done)) as progress:
        if done == 0:
            evaluate(0)
        waiting = None  # the newest step, its metrics still on the devices
        for number, batch in enumerate(batches, start=done + 1):
            tokens = int(np.count_nonzero(batch.bins.segments_CST))
            profile.before(number)
            with limited(f"step {number}"):  # on some backends a call waits for the other processes
                state, metrics = parts.step(state, frozen, parts.to_devices(batch))
            profile.after(number, metrics)
            if waiting is not None:  # a step's loss is read only when the next one is under way
                record(*waiting)
            waiting = (number, metrics, tokens)

            last = number == plan.steps
            if last or number % plan.eval_every == 0:
                record(*waiting)
                waiting = None
                evaluate(number)
            with limited(f"agreeing whether to stop after step {number}"):
                signal_ = asked.after(number)
            if last or number % plan.checkpoint_every == 0 or signal_:
                if waiting is not None:
                    record(*waiting)
                    waiting = None
                logbook.flush()  # before the checkpoint: a step that is saved is a step that is written down
                with limited(f"saving step {number}"):
                    checkpoints.save(number, state.params, state.opt_state)
                clock.lap()
            if signal_ and not last:
                with limited(f"saving step {number}"):
                    checkpoints.wait()
                print(f"stopped after step {number}, saved; the same command goes on", file=sys.stderr)
                raise SystemExit(128 + signal_)
    return state


class _NotFinite:
    """Steps whose loss or gradient is no number: written down with their examples, for replay; too many end the run.

    Such a step has changed no parameter, so nothing of it is ever saved.
    """

    def __init__(self, workdir: Path, allowed: int):
        self._workdir, self._allowed, self._in_a_row = workdir, allowed, 0

    def seen(self, number: int, metrics: dict[str, float], examples: Callable[[int], list[str]]) -> str | None:
        """What is to be said of a step that was left out; None of a sound one. Raises NonFiniteLossError."""
        if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        its, path = examples(number), self._workdir / f"nonfinite-{number}.json"
        if distributed.is_first():
            told = {name: str(value) for name, value in metrics.items()}  # JSON has no NaN
            files.write_json(path, {"step": number, **told, "examples": its})
        said = f"step {number}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}"
        where = f"Its examples: {', '.join(its[:5])}{', …' if len(its) > 5 else ''} (all of them in {path})"
        if self._in_a_row > self._allowed:
            raise NonFiniteLossError(f"{said}; nothing is saved from here. {where}")
        return f"{said}; it is left out. {where}"


class _Clock:
    """Seconds since the last lap."""

    def __init__(self):
        self._last = time.monotonic()

    def lap(self) -> float:
        last, self._last = self._last, time.monotonic()
        return self._last - last


class _Asked:
    """Ctrl-C and SIGTERM: the first asks for an end after the step in progress, a second one ends at once.

    Of several processes JAX hears SIGTERM, in whichever of them, and names the step after which all end.
    """

    signal: int = 0

    def after(self, step: int) -> int:
        """The signal, where the run is to end after this step; else 0."""
        if distributed.several():
            return signal.SIGTERM if distributed.preempted(step) else 0
        return self.signal

    @contextlib.contextmanager
    def listening(self):
        if distributed.several():
            yield
            return
        try:
            before = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


class _Profile:
    """An XProf trace of the steps first … last (None: of none)."""

    def __init__(self, steps: tuple[int, int] | None, directory: Path):
        self._steps, self._directory, self._on = steps, directory, False

    def before(self, number: int) -> None:
        if self._steps and not self._on and self._steps[0] <= number <= self._steps[1]:
            jax.profiler.start_trace(self._directory)
            self._on = True

    def after(self, number: int, metrics) -> None:
        if self._on and number == self._steps[1]:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
