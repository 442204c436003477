"""The directory of a run: config.json, which says what the run is, and the refusal to mix two runs.

D/config.json     the resolved config; under `run`, what was worked out from it
D/tokenizer/      D/base/ (only where the frozen weights came from no hub or directory)
D/checkpoints/    D/metrics.jsonl  D/tensorboard/  D/curves.png  D/results.md
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import e5jax
from e5jax import command, distributed, files, hf, places
from e5jax.architecture import Architecture
from e5jax.config import FromScratch, TrainConfig
from e5jax.errors import UserError
from e5jax.formats import Tokenizer
from e5jax.packing import BinShape
from e5jax.schedule import Schedule


# What may differ between a run and its resumption.
MAY_CHANGE = (
    "workdir",
    "eval_every",
    "checkpoint_every",
    "skip_non_finite",
    "mesh",
    "extend",
    "profile_steps",
    "packing",
    "remat",
    "distributed",
    "wandb_project",
    "data.cache",
)
FACTS = {
    "architecture": "the model",
    "data": "the training data",
    "tokenizer": "the tokenizer",
    "base": "the base model",
    "teacher": "the teacher",
}


def read_config(workdir: Path) -> dict:
    """config.json of a run. UserError where another version of e5jax wrote it."""
    config = _stored(workdir)
    if "architecture" not in config["run"]:
        raise UserError(f"{workdir} is a run of e5jax {config['run'].get('e5jax')}: open it with that version")
    return config


def _stored(workdir: Path) -> dict:
    return json.loads((workdir / "config.json").read_text(encoding="utf-8"))


def is_run(workdir: Path) -> bool:
    """Whether a directory holds a run of ours (and not, say, a Hugging Face model)."""
    try:
        stored = _stored(workdir)
        return isinstance(stored, dict) and isinstance(stored.get("run"), dict)
    except (OSError, ValueError, RecursionError):
        return False


def check_new_or_run(workdir: Path) -> None:
    """UserError where a run can neither start nor go on: nothing of the user's is written over."""
    if places.is_remote(workdir) and distributed.is_first():
        places.try_writing(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file: choose another --workdir")
    if workdir.exists() and any(workdir.iterdir()) and not is_run(workdir):
        raise UserError(f"{workdir} is not empty and holds no run: choose another --workdir")


def check_resumable(workdir: Path, config: TrainConfig, facts: dict) -> dict | None:
    """What is stored of the run in `workdir`; None where there is none. UserError, by field, where it is another."""
    if not is_run(workdir):
        return None
    stored = read_config(workdir)
    if "merged" in stored["run"]:
        raise UserError(
            f"{workdir} was merged of runs, and is none to go on with. Start from it in another --workdir: "
            f"--init-from {workdir} for adapters, --model.base {workdir} for whole weights"
        )
    mine, theirs = _flat(command.to_json(config)), _flat({k: v for k, v in stored.items() if k != "run"})
    # Which switches came after the version that wrote the run: it had what they are by default.
    since = _flat({name: value for name, value in _defaults().items() if name not in stored})
    off = {name: value for name, value in mine.items() if value is None or value is False}
    theirs = off | since | theirs
    changed = [
        name
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name) and not name.startswith(MAY_CHANGE)
    ]
    if "steps" in changed and config.extend and config.steps > stored["steps"]:
        changed.remove("steps")
    reasons = [f"{name} is {theirs.get(name)!r} there and {mine.get(name)!r} here" for name in changed]
    if not changed:
        reasons = [f"{what} changed since" for fact, what in FACTS.items() if facts[fact] != stored["run"][fact]]
    if reasons:
        hint = "; --extend allows more steps" if changed == ["steps"] and config.steps > stored["steps"] else ""
        raise UserError(
            f"{workdir} holds another run: {'; '.join(reasons)}{hint}. Choose another --workdir, or remove this one"
        )
    return stored["run"]


def _defaults() -> dict:
    fields = dataclasses.fields(TrainConfig)
    given = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    plain = {name: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for name, v in given.items()}
    return json.loads(json.dumps(plain))


def _flat(tree, prefix: str = "") -> dict:
    if isinstance(tree, list):
        tree = {str(i): value for i, value in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf
        for key, value in tree.items()
        for name, leaf in _flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


def stored_plan(workdir: Path, config: TrainConfig, shards: int) -> tuple[Schedule, BinShape] | None:
    """Schedule and batch shape of the run in `workdir`; None where it has none for these settings and shards."""
    if not is_run(workdir):
        return None
    stored = read_config(workdir)
    shape, schedule = stored["run"]["shape"], stored["run"].get("schedule")
    same = (stored["packing"], stored["remat"]) == (command.to_json(config.packing), config.remat)
    if shape["shards"] != shards or not same or schedule is None:
        return None
    return Schedule(**schedule), BinShape(**{**shape, "rows": tuple(map(tuple, shape["rows"]))})


def keeps_base(config: TrainConfig) -> bool:
    """Whether the frozen weights come from nowhere else, and so go into the workdir."""
    return isinstance(config.model, FromScratch) and config.lora is not None


def create(
    workdir: Path,
    config: TrainConfig,
    cfg: Architecture,
    facts: dict,
    schedule: Schedule,
    shape: BinShape,
    tokenizer: Tokenizer,
    frozen: dict,
) -> None:
    """All that a later command needs to use this run, written before the first step."""
    # Made beside its place and renamed when whole: a run that was killed here has not begun.
    partial = places.beside(workdir).with_name(f".{workdir.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        tokenizer.save(partial / "tokenizer")
        if keeps_base(config):
            # Latents are trained beside the adapters, so they are none of the base's.
            hf.save(frozen, dataclasses.replace(cfg, pooling="last"), config.model.dtype, partial / "base")
        write_config(partial, config, facts, schedule, shape)
        if places.is_remote(workdir):
            places.send(partial, workdir, last="config.json")
        else:
            partial.replace(workdir)  # over an empty folder, too
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def papers(workdir: Path) -> tuple[Path, Callable[[], None]]:
    """What people read of a run -> (the folder to write it to, what sends it where it belongs).

    A run in a bucket writes metrics, pictures and traces here, and process 0 sends them.
    """
    if not places.is_remote(workdir):
        return workdir, lambda: None
    copy = places.Mirror(workdir, without=("checkpoints", "base"))
    if not distributed.is_first():
        return copy.here, lambda: None
    copy.pull()
    return copy.here, copy.push


def write_config(workdir: Path, config: TrainConfig, facts: dict, schedule: Schedule, shape: BinShape) -> None:
    """config.json, whole or not at all."""
    run = {
        "e5jax": e5jax.__version__,
        "schedule": dataclasses.asdict(schedule),
        "shape": dataclasses.asdict(shape),
        **facts,
    }
    files.write_json(workdir / "config.json", {**command.to_json(config), "run": run})
