"""Merge runs: `python -m e5jax.merge --runs A B --output C`.

Their newest checkpoints, or the ones named -> one checkpoint of a run like the first, which encode, evaluate and export
read like any other, and which `--init-from` starts from. Qwen3-Embedding (arXiv 2506.05176, Table 5) gained 1.8 points
on MMTEB by merging the checkpoints of its last stage by slerp.
"""

import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from e5jax import checkpoint, command, files, manifest, places, soup
from e5jax import workdir as workdirs
from e5jax.config import MergeConfig
from e5jax.errors import UserError


PROG = "python -m e5jax.merge"
SAME = ("model", "lora.targets", "data.query_prompt", "data.passage_prompt")


def merge(config: MergeConfig) -> Path:
    """-> the workdir of the merged run. Raises UserError where the runs are not of one model."""
    output = places.place(config.output)
    if output.exists():
        raise UserError(f"{output} exists: choose another --output")
    found = [checkpoint.find_step(checkpoint.brought(name)) for name in config.runs]
    stored = [workdirs.read_config(workdir) for workdir, _ in found]
    for name, other in zip(config.runs[1:], stored[1:], strict=True):
        check_alike(config.runs[0], stored[0], name, other)
    trees = [read_params(step_dir) for _, step_dir in found]
    weights = np.array(config.weights or [1.0] * len(trees))
    weights = (weights / weights.sum()).tolist()
    first = dict(stored[0])
    if first["lora"] is None:
        if config.rank is not None:
            raise UserError("rank is for adapters: these runs trained every weight")
        params, lost = soup.of_weights(trees, weights, config.method), 0.0
    else:
        scales = [run["lora"]["alpha"] / run["lora"]["rank"] for run in stored]
        params, rank, lost = soup.of_adapters(trees, scales, weights, config.method, config.rank)
        first["lora"] = {**first["lora"], "rank": rank, "alpha": float(rank)}
    steps = [int(step_dir.name) for _, step_dir in found]
    parts = [
        {"run": name, "step": step, "weight": weight, "digest": checkpoint.digest(step_dir)}
        for name, step, weight, (_, step_dir) in zip(config.runs, steps, weights, found, strict=True)
    ]
    merged = {"of": parts, "method": config.method, "lost": lost}
    first = {**first, "workdir": config.output, "run": {**first["run"], "merged": merged}}
    write(output, found[0][0], first, max(steps), params)
    print(f"{output}: {config.method} of {', '.join(config.runs)}" + (f", {lost:.1%} lost" if config.rank else ""))
    return output


def check_alike(name: str, one: dict, other_name: str, other: dict) -> None:
    """UserError, by field, where two runs did not train the same weights of the same model."""
    value = lambda run, field: _get(run, field.split("."))
    facts = ("run.architecture", "run.tokenizer", "run.base")
    kinds = [f for f in (*facts, *SAME) if value(one, f) != value(other, f)]
    if (one["lora"] is None) != (other["lora"] is None):
        kinds.append("lora")
    if one["run"]["base"] is None and one["lora"] is not None and one["seed"] != other["seed"]:
        kinds.append("seed")  # a random base is made from it
    if kinds:
        raise UserError(f"{name} and {other_name} differ in {', '.join(kinds)}: they cannot be merged")


def _get(tree, keys):
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def read_params(step_dir: Path) -> dict:
    """What a step holds of trained weights, as NumPy arrays."""
    tree = manifest.read(step_dir)["tree"]
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = {}
    for name, told in tree.items():
        kind, *path = name.split("/")
        if kind == "params":
            dtype, _, shape = told.rstrip("]").partition("[")
            dims = tuple(int(n) for n in shape.split(",") if n)
            like[tuple(path)] = jax.ShapeDtypeStruct(dims, jnp.dtype(dtype), sharding=here)
    return jax.tree.map(np.asarray, checkpoint.read_params(step_dir, unflatten_dict(like)))


def write(output: Path, like: Path, config: dict, step: int, params: dict) -> None:
    """A workdir with one checkpoint, whole or not at all; tokenizer and base are those of the run `like`."""
    aside = files.partial(places.beside(output))
    try:
        for name in ("tokenizer", "base"):
            if (like / name).is_dir():
                shutil.copytree(like / name, aside / name)
        facts = {"config": {key: value for key, value in config.items() if key != "run"}, **config["run"]}
        with contextlib.closing(checkpoint.Checkpoints(aside, facts)) as checkpoints:
            state = nnx.State(jax.tree.map(lambda x: nnx.Param(jnp.asarray(x)), params))
            checkpoints.save(step, state, {"none": jnp.zeros(1)})  # it is no run to go on with
        files.write_json(aside / "config.json", config)
        if places.is_remote(output):
            places.send(aside, output, last="config.json")
        else:
            aside.replace(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(merge, MergeConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
