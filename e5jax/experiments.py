"""A table of the paper, run row by row: `python -m e5jax.experiments --table 5 --scale small`.

A table is a Python file, `configs/paper/table_5.py` (of `--scale small`: `configs/paper/small/`), whose `get_config()`
returns a `Table`: rows with their training configs, the tasks they are measured on, and what the paper says of each.

for each row, for each seed: train (a first stage too, where the row has one) → evaluate → D/scores/ROW-SEED.json
after each: D/table.md, table.json, table.png: means over seeds, differences to the row's reference with 95 % intervals

Whatever is there is not done again: an experiment that was stopped goes on where it was, in the middle of a run too.
"""

import dataclasses
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from e5jax import command, experiment_table, files
from e5jax.config import EvaluateConfig, ExperimentsConfig
from e5jax.errors import UserError
from e5jax.rows import Row, Table


PROG = "python -m e5jax.experiments"
frozen = dataclasses.dataclass(frozen=True, kw_only=True)


def experiments(config: ExperimentsConfig) -> dict:
    """Run what is not there yet -> table.json. Raises UserError for what the user can mend."""
    path = find(config)
    table = command.load_config(str(path))
    if not isinstance(table, Table):
        raise UserError(f"{path}: get_config() returns {type(table).__name__}, not a Table of e5jax.rows")
    known = [row.name for row in table.rows]
    if strangers := [name for name in config.rows if name not in known]:
        raise UserError(f"no row {strangers[0]!r} in {path}; there are {', '.join(map(repr, known))}")
    output = Path(config.output or f"runs/experiments/{path.stem}-{config.scale}").expanduser()
    wanted = [row for row in table.rows if row.name in (config.rows or known) and not row.unanswered]
    todo = [(row, seed) for row in wanted for seed in (config.seeds[:1] if row.model else config.seeds)]
    (output / "scores").mkdir(parents=True, exist_ok=True)
    if table.prepare is not None:
        table.prepare()
    for number, (row, seed) in enumerate(todo, 1):
        said = f"[{number}/{len(todo)}] {row.name}, seed {seed}"
        if scores_path(output, row, seed).exists():
            print(f"{said}: there already", flush=True)
            continue
        print(f"{said}: begins", flush=True)
        start = time.monotonic()
        scores = measure(table, row, seed, output)
        taken = time.monotonic() - start
        files.write_json(scores_path(output, row, seed), {"row": row.name, "seed": seed, **scores, "seconds": taken})
        print(f"{said}: {taken / 60:.1f} minutes", flush=True)
        experiment_table.write(output, table, read_scores(output, table))
    told = experiment_table.write(output, table, read_scores(output, table))
    print(f"\n{(output / 'table.md').read_text(encoding='utf-8')}\nin {output}")
    return told


def find(config: ExperimentsConfig) -> Path:
    """The table's file."""
    if config.table.endswith(".py"):
        return Path(config.table)
    folder = Path(config.folder) / ("small" if config.scale == "small" else "")
    name = config.table if config.table.startswith("figure") else f"table_{config.table.removeprefix('table_')}"
    if not (folder / f"{name}.py").is_file():
        there = sorted(path.stem.removeprefix("table_") for path in folder.glob("*_*.py") if path.stem[:5] in KINDS)
        raise UserError(f"no table {config.table!r} in {folder}; there are {', '.join(there) or 'none'}")
    return folder / f"{name}.py"


KINDS = ("table", "figur")


def scores_path(output: Path, row: Row, seed: int) -> Path:
    """Where a row's scores of a seed are."""
    return output / "scores" / f"{slug(row.name)}-{seed}.json"


def slug(name: str) -> str:
    """A name as a file's."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")


def measure(table: Table, row: Row, seed: int, output: Path) -> dict:
    """Train and evaluate -> {"scores": {task: score}}."""
    from e5jax import evaluate  # which brings mteb

    scores = {}
    model = row.model
    runner = next((other for other in table.rows if other.name == row.trained_as), row)
    if runner.train is not None:
        model = str(run_folder(output, runner, seed))
        scores |= train(runner, seed, output)
    wanted = [task for tasks in table.columns.values() for task in tasks if not task.startswith("eval/")]
    tasks = [*dict.fromkeys(task.partition("/")[0] for task in wanted)]
    if tasks:
        lengths = tuple(int(task.removeprefix("passkey-")) for task in tasks if task.startswith("passkey-"))
        named = tuple(task for task in tasks if not task.startswith("passkey-")) + ("passkey",) * bool(lengths)
        options = {"passkey_lengths": lengths} if lengths else {}
        found = evaluate.evaluate(
            EvaluateConfig(
                model=(model,),
                tasks=named,
                output=str(output / "evaluations" / f"{slug(row.name)}-{seed}"),
                data_dir=table.data_dir,
                **{**options, **row.measured},
            )
        )
        results = [result for run in found for result in run.results]
        scores |= {result.task: result.value for result in results}
        scores |= {f"{result.task}/{name}": value for result in results for name, value in result.subsets.items()}
    jax.clear_caches()  # programs of one row are of no use to another
    gc.collect()
    return {"scores": scores, "model": model}


def run_folder(output: Path, row: Row, seed: int) -> Path:
    """The workdir of a row's run."""
    return output / "runs" / f"{slug(row.name)}-{seed}"


def train(row: Row, seed: int, output: Path) -> dict[str, float]:
    """The row's run, after its first stage -> its last held-out metrics."""
    from e5jax.train import train as run

    workdir = run_folder(output, row, seed)
    config = dataclasses.replace(row.train, workdir=str(workdir), seed=seed)
    if row.first is not None:
        first = workdir.with_name(f"{workdir.name}-first")
        run(dataclasses.replace(row.first, workdir=str(first), seed=seed))
        config = dataclasses.replace(config, init_from=str(first))
    return {name: float(value) for name, value in run(config).items() if name.startswith("eval/")}


def read_scores(output: Path, table: Table) -> dict[str, dict[int, dict[str, float]]]:
    """{row: {seed: {task: score}}} of all that is there."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    names = {slug(row.name): row.name for row in table.rows}
    for path in sorted((output / "scores").glob("*.json")):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            name, _, seed = path.stem.rpartition("-")
            if name in names:
                found.setdefault(names[name], {})[int(seed)] = {
                    task: float(value) for task, value in stored["scores"].items()
                }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not the scores of a row: {error!r}; remove it, and it is measured again"
            ) from error
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(experiments, ExperimentsConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
