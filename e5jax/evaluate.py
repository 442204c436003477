"""Measure models: `python -m e5jax.evaluate --model M --tasks stsb-en xquad-de --output D`.

names → mteb tasks, local ones among them → for each model: open it, run what is not in D yet, write it down
      → results.json, results.md, a picture of several models or steps; or, of two such folders, their differences
"""

import dataclasses
import hashlib
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from e5jax import command, compare, passkey, places, results, tasks
from e5jax.compare import Difference
from e5jax.config import EvaluateConfig
from e5jax.errors import UserError
from e5jax.mteb_model import BM25, SENTENCE_TRANSFORMERS, MtebModel, open_mteb_model
from e5jax.prompts import load_table
from e5jax.reach import reaching
from e5jax.records import existing
from e5jax.results import Results, TaskResult
from e5jax.sharding import local_mesh
from e5jax.task_run import can_run, fingerprint, run_task
from e5jax.tensors import digest_files
from e5jax.vectors import Kept


PROG = "python -m e5jax.evaluate"


def evaluate(config: EvaluateConfig) -> list[Results] | list[Difference]:
    """Run, or go on with, what the config says -> the results of each model, or the differences between two.

    Raises UserError for what the user can mend.
    """
    with places.output(config.output) as output:
        return _evaluate(config, output)


def _evaluate(config: EvaluateConfig, output: Path) -> list[Results] | list[Difference]:
    if config.compare is not None:
        results.check_folder(output, "compare.json")
        a, b = (results.read_folder(places.local(folder)) for folder in config.compare)
        rows = compare.write(output, a, b)
        print(compare.report(a.model, b.model, rows))
        return rows
    data_dir = config.data_dir or os.environ.get("E5JAX_DATA")
    named = [name for name in config.tasks if name != "passkey"]
    todo = tasks.resolve(named, existing(data_dir) if data_dir else None)
    lengths = config.passkey_lengths if "passkey" in config.tasks else ()
    folders = [output / _slug(name) for name in config.model] if len(config.model) > 1 else [output]
    if len(set(folders)) < len(folders):
        raise UserError(f"models of one name: {', '.join(config.model)}: measure them one at a time")
    results.check_folder(output, "results.json" if len(folders) == 1 else "*/results.json")
    load_table(config.prompts)
    others = [name for name in config.model if name == BM25 or name.startswith(SENTENCE_TRANSFORMERS)]
    changed = [value is not None for value in (config.window, config.rope_theta, config.rope_scale)]
    if others and (lengths or any(changed)):
        raise UserError(
            f"{others[0]}: passkey, --window, --rope-theta and --rope-scale are for models that e5jax itself runs"
        )
    if BM25 in config.model and (config.dims is not None or config.quantize is not None):
        raise UserError(f"{BM25} has no vectors: --dims and --quantize are for models that have some")
    runs = []
    for name, folder in zip(config.model, folders, strict=True):
        runs.append(_measure(name, todo, lengths, folder, config))
        results.write_report(output, runs, {task.metadata.name: task.metadata.type for task in todo})
    if lengths:
        passkey.draw(passkey.curves(runs), output / "passkey.png")
    print(f"\n{(output / 'results.md').read_text(encoding='utf-8')}\nin {output}")
    return runs


def _measure(name: str, todo: list, lengths: Sequence[int], folder: Path, config: EvaluateConfig) -> Results:
    print(f"{name}: loading", flush=True)
    model = open_mteb_model(
        name,
        max_length=config.max_length,
        dtype=config.dtype,
        mesh=local_mesh(),
        prompts=config.prompts,
        kept=Kept(dims=config.dims, quantize=config.quantize),
    )
    if isinstance(model, MtebModel):
        encoder = reaching(model.encoder, config.window, config.rope_theta, config.rope_scale)
        model = dataclasses.replace(model, encoder=encoder)
        facts = {
            "digest": encoder.digest,
            "tokenizer": encoder.tokenizer.digest,
            "own_prompts": dataclasses.asdict(encoder.prompts),
            "max_length": encoder.max_length,
            "dtype": jnp.dtype(encoder.dtype).name,
        }
    elif name == BM25:
        facts = {}
    else:
        folder_digest = _digest(Path(places.named(name.removeprefix(SENTENCE_TRANSFORMERS))))
        facts = {"digest": folder_digest, "max_length": config.max_length, "dtype": config.dtype}
    identity = {
        **facts,
        "window": config.window,
        "rope_theta": config.rope_theta,
        "rope_scale": config.rope_scale,
        "prompts": _which(config.prompts),
        "dims": config.dims,
        "quantize": config.quantize,
    }
    run = results.open_folder(folder, name, identity, config.paper)
    if len(config.model) > 1:  # a baseline that only searches stands beside the others where it can
        todo = [task for task in todo if can_run(model, task)]
    total = len(todo) + len(lengths)
    for number, task in enumerate(todo, 1):
        measure = lambda task=task: run_task(model, task)
        run = _once(run, folder, task.metadata.name, fingerprint(task), f"[{number}/{total}]", measure)
    for number, length in enumerate(lengths, len(todo) + 1):
        measure = lambda length=length: _passkey(model, length)
        run = _once(run, folder, f"passkey-{length}", passkey.DATA, f"[{number}/{total}]", measure)
    return run


def _once(run: Results, folder: Path, task: str, data: str, which: str, measure) -> Results:
    """One task, unless the folder has it already; UserError where it has it on other data."""
    if (found := run.find(task)) is not None:
        if found.data != data:
            raise UserError(f"{folder} has {task} measured on other data ({found.data}; now {data}): another --output")
        print(f"{which} {task}: {found.metric} {found.value:.4f}, measured before", flush=True)
        return run
    start = time.monotonic()
    run = results.add(folder, run, found := measure())
    seconds = time.monotonic() - start
    print(f"{which} {task}: {found.metric} {found.value:.4f} (n {found.n:,}, {seconds:.0f} s)", flush=True)
    return run


def _passkey(model: MtebModel, length: int) -> TaskResult:
    """Accuracy among 100 documents of one length, which the encoder reads whole."""
    if length > (model.encoder.model.cfg.longest or length):
        raise UserError(f"passkey: {model.name} reads texts of at most {model.encoder.model.cfg.longest} tokens")
    encoder = dataclasses.replace(model.encoder, max_length=length)
    ask = lambda side: model.before("passkey", "Retrieval", passkey.INSTRUCTION, (side,))
    prompt = {side: ask(side) for side in ("query", "passage")}
    # A prompt in front of documents takes from their length.
    taken = len(encoder.tokenizer.encode([prompt["passage"]], length)[0]) if prompt["passage"] else 0
    queries, documents, right = passkey.make(length - taken, encoder.tokenizer, passkey.SEED)
    vectors = [
        model.kept.apply(encoder.encode([prompt[side] + text for text in texts]))
        for side, texts in (("query", queries), ("passage", documents))
    ]
    return passkey.task_result(length, passkey.accuracy(*vectors, right), prompt)


def _digest(folder: Path) -> str | None:
    """Of a model in a folder of sentence-transformers; None for a name on the hub."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".txt"))
    return digest_files(files) if folder.is_dir() else None


def _which(table: str | None) -> str:
    if table in (None, "none"):
        return table or "paper"
    return f"{Path(table).name} {hashlib.sha256(existing(table).read_bytes()).hexdigest()[:12]}"


def _slug(name: str) -> str:
    """A folder's name for a model's: runs/x/checkpoints/300 -> x-checkpoints-300."""
    return re.sub(r"[^\w.-]+", "-", "-".join(Path(name).parts[-3:])).strip("-.") or "model"


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(evaluate, EvaluateConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
