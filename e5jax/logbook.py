"""What a run writes for people and programs: metrics.jsonl, TensorBoard, the progress bar, curves.png.

metrics.jsonl has one object a line. Whatever was killed, every step stands there exactly once: rows reach the disk
before their step's checkpoint is written, and a resumed run first cuts the file back to the step it restored.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from e5jax import files
from e5jax.errors import FailedError
from e5jax.pictures import pyplot, save


class Logbook:
    """Rows go to metrics.jsonl, TensorBoard and, if wanted, Weights & Biases."""

    def __init__(self, workdir: Path, restored: int | None, wandb_project: str | None, sent: Callable[[], None]):
        """`sent`: called when all is on disk."""
        self._sent = sent
        self.path = workdir / "metrics.jsonl"
        cut_back(self.path, restored)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        purge_step = (restored or 0) + (restored is not None)
        self._board = _tensorboard().SummaryWriter(str(workdir / "tensorboard"), purge_step=purge_step)
        self._wandb = None
        if wandb_project is not None:
            import wandb  # optional

            self._wandb = wandb.init(project=wandb_project, dir=workdir)

    def write(self, row: dict) -> None:
        """One row; `step` is required, other values are numbers."""
        with self._disk():
            self._file.write(json.dumps(row) + "\n")
        scalars = {key: value for key, value in row.items() if key != "step"}
        for key, value in scalars.items():
            self._board.add_scalar(key, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(scalars, step=row["step"])

    def flush(self) -> None:
        """Everything written so far is on disk when this returns."""
        with self._disk():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()
        self._sent()

    @contextlib.contextmanager
    def _disk(self):
        try:
            yield
        except OSError as error:  # of a write, which does not say to which file
            raise FailedError(f"{self.path}: {error.strerror}; what was saved before is whole") from error

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _tensorboard():
    """tensorboardX, without what it loads at once where installed and we never need: tensors and buckets of its own."""
    unneeded = {"torch", "boto3", "google.cloud.storage"} - {*sys.modules}  # two of a command's four seconds of start
    sys.modules |= dict.fromkeys(unneeded)  # None: as if not installed
    try:
        import tensorboardX
    finally:
        for name in unneeded:
            del sys.modules[name]
    return tensorboardX


class NoLogbook:
    """That of a process that does not write."""

    def write(self, row: dict) -> None:
        """Nothing, and so below."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_rows(path: Path) -> list[dict]:
    """The whole rows of a metrics.jsonl; a torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def cut_back(path: Path, restored: int | None) -> None:
    """Keep only the rows up to the restored step (None: nothing was restored, keep none)."""
    if path.exists():
        rows = [row for row in read_rows(path) if restored is not None and row["step"] <= restored]
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


class Progress:
    """A bar on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, steps: int, done: int, every_s: float = 10.0):
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, disable=not self._terminal)
        self._steps, self._every_s, self._last = steps, every_s, time.monotonic()
        self._first = None  # (step, when): the time left is reckoned from the second step, behind the compilation

    def step(self, row: dict) -> None:
        """Show a finished step."""
        said = f"loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tok/s, {row['utilization']:.0%} of peak"
        self._bar.set_postfix_str(said, refresh=False)
        self._bar.update()
        now = time.monotonic()
        if self._first is None:
            self._first = (row["step"], now)
        elif not self._terminal and (now - self._last > self._every_s or row["step"] == self._steps):
            self._last = now
            step, when = self._first
            left = (now - when) / (row["step"] - step) * (self._steps - row["step"])
            print(f"step {row['step']}/{self._steps}: {said}, {left:.0f} s left", flush=True)

    def left_out(self, line: str) -> None:
        """A step that is over and changed nothing; the line says why."""
        self._bar.update()
        self.say(line)

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if self._terminal:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Leave the terminal tidy."""
        self._bar.close()


def draw_curves(rows: list[dict], baselines: dict[str, float], path: Path) -> None:
    """Loss, held-out nDCG@10 beside BM25, and speed over the steps, in one picture."""
    plt = pyplot()
    train = [row for row in rows if "loss" in row]
    evals = [row for row in rows if any(key.startswith("eval/") for key in row)]
    panels = 3 if evals else 2
    figure, axes = plt.subplots(1, panels, figsize=(4.6 * panels, 3.6), layout="constrained")
    steps = [row["step"] for row in train]

    axes[0].set_title("InfoNCE loss")
    losses = [row["loss"] for row in train]
    axes[0].plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=1)
    axes[0].plot(steps, _smooth(losses, 0.9 if len(losses) > 150 else 0.6), color="tab:blue", linewidth=1.8)
    axes[0].set_ylim(bottom=0)

    if evals:
        axes[1].set_title("held-out nDCG@10")
        names = [key for key in evals[0] if key.endswith("ndcg@10")]
        sets = [n for n in names if n.count("/") > 1] or names
        for number, key in enumerate(sets):
            color, name = f"C{number}", key.removeprefix("eval/").removesuffix("/ndcg@10")
            axes[1].plot(
                [row["step"] for row in evals],
                [row[key] for row in evals],
                marker="o",
                markersize=3,
                color=color,
                label=name,
            )
        # One line of BM25 for all sets: one for each would hide the curves.
        if baselines:
            bm25 = sum(baselines.values()) / len(baselines)
            label = "BM25" if len(baselines) == 1 else "BM25, mean"
            axes[1].axhline(bm25, color="black", linestyle="--", linewidth=1, label=label)
        axes[1].set_ylim(0, 1.2 if len(sets) > 3 else 1.1)  # room for the legend
        axes[1].legend(fontsize=7, loc="upper left", ncols=1 if len(sets) < 4 else 3)
    axes[-1].set_title("real tokens a second")
    axes[-1].plot(steps, [row["tokens_per_second"] for row in train], color="tab:gray", linewidth=1)
    axes[-1].set_ylim(bottom=0)

    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    save(figure, axes, path)


def _smooth(values, decay):
    smoothed, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        smoothed.append(mean / weight)
    return smoothed
