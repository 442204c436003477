"""The paper's step, compiled for TPU slices that are not there: does it fit, what does it move, how long may it take.

    pip install 'jax[tpu]'
    python -m benchmarks.pods --slices v5e:2x4 v5e:8x8 v5e:16x16 v5p:8x8x8 --output benchmarks/results

libtpu compiles for any slice on a CPU: the program is what a pod would run, its memory what XLA has laid out.
Times are reckoned, not measured: FLOPs over the chip's peak at a stated utilisation, bytes over its links. Slices that
pods.json has already are left out; a slice takes minutes to compile.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import os
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock


os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no metadata server tells what this machine is

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

import e5jax
from benchmarks import at_7b, speed_data
from e5jax import files, schedule
from e5jax.decoder import MISTRAL_7B_V01
from e5jax.flops import peak_flops
from e5jax.layers import Dropout
from e5jax.packing import choose_shape
from e5jax.sharding import make_mesh, shard_count
from e5jax.step import build


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """The vendor's figures."""

    memory: float
    link: float
    """Bytes a second over all links between chips."""


CHIPS = {
    "v5e": Chip(memory=16e9, link=200e9),
    "v5p": Chip(memory=95e9, link=600e9),
    "v6e": Chip(memory=32e9, link=448e9),
}
UTILISATION = 0.45  # of the peak, of what is executed: what row G2 asks of one accelerator
FREE = 0.92  # of a chip's memory; the rest is the runtime's
QUERIES = 2048


def mesh_of(chip: Chip, devices) -> jax.sharding.Mesh:
    """A copy of the base on every chip that holds it beside a step, else one over every eight."""
    return make_mesh((-1, 1, 1) if chip.memory > 60e9 else (-1, 8, 1), devices)


def compiled(name: str) -> dict:
    """One slice -> its row."""
    chip = CHIPS[name.split(":")[0]]
    devices = topologies.get_topology_desc(name, platform="tpu").devices
    mesh = mesh_of(chip, devices)
    shards, cfg = shard_count(mesh), MISTRAL_7B_V01
    rng = np.random.default_rng(0)
    lengths = [np.concatenate(speed_data.marco_lengths(QUERIES, 512, 512, rng)) for _ in range(12)]
    config = at_7b.paper(batch_size=QUERIES)
    graphdef, params, frozen = jax.eval_shape(partial(build, config, cfg), jax.random.key(0))
    state = at_7b.step(config, cfg, choose_shape(lengths, shards, 1, 0.25, (512, 128)))[1][0]
    held = sum(at_7b.bytes_a_device(tree, mesh) for tree in (state, params, frozen))
    dropout = Dropout(adapters=config.lora.dropout, hidden=0.0)
    costs = partial(schedule.cost, graphdef, params, frozen, 512, 1, jnp.dtype("bfloat16"), dropout)
    tokens = float(np.mean([texts.sum() for texts in lengths]))
    work = schedule.Work(tokens=tokens / shards, layers=cfg.layers, fixed=held, costs=functools.cache(costs))

    limit = FREE * chip.memory

    def attempt(chosen):
        shape = choose_shape(lengths, shards, chosen.chunks, 0.25, (512, 128))
        packing = dataclasses.replace(config.packing, chunks=chosen.chunks, kept=chosen.kept)
        step, arguments = at_7b.step(dataclasses.replace(config, packing=packing, remat=chosen.remat), cfg, shape)
        start = time.monotonic()
        with jax.set_mesh(mesh):
            lowered = at_7b.jitted(step, arguments, mesh).trace(*arguments).lower(lowering_platforms=("tpu",))
            try:
                made = lowered.compile()
            except jax.errors.JaxRuntimeError as error:
                asked = schedule.ran_out(error, limit)
                print(f"{name}: {chosen} has no room, {asked / 1e9:.1f} GB", flush=True)
                return None, asked
        print(f"{name}: {chosen}, compiled in {time.monotonic() - start:.0f} s", flush=True)
        return (chosen, shape, made), schedule.bytes_of(made)

    wanted = schedule.Wanted(chunks=None, kept=None, remat=None)
    chosen, shape, made = schedule.fitting(work, wanted, limit, attempt)
    memory = made.memory_analysis()
    flops = work.flops(chosen) * work.tokens
    passes = 2 + chosen.remat + (chosen.chunks > chosen.kept)
    split = mesh.shape["fsdp"]
    gathered = passes * shape.chunks * _base(frozen) * (split - 1) / split
    summed = 2 * 4 * at_7b.elements(params)
    return {
        "slice": name,
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "schedule": str(chosen),
        "base_gb": at_7b.bytes_a_device(frozen, mesh) / 1e9,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "limit_gb": chip.memory / 1e9,
        "predicted_gb": work.bytes(chosen) / 1e9,
        "tokens": tokens,
        "tflop_a_chip": flops / 1e12,
        "gathered_gb_a_chip": gathered / 1e9,
        "summed_gb_a_chip": summed / 1e9,
        "compute_s": flops / (UTILISATION * peak_flops(devices[:1], jnp.dtype("bfloat16"))),
        "links_s": (gathered + summed) / chip.link,
        "collectives": dict(collections.Counter(_collectives(made.as_text()))),
        "versions": {"e5jax": e5jax.__version__, "jax": jax.__version__},
    }


def _base(frozen) -> float:
    """Bytes of the weights that a layer gathers; the table of embeddings is looked up where it is."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(frozen["layers"]))


def _collectives(hlo: str):
    kinds = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    for line in hlo.splitlines():
        yield from (kind for kind in kinds if f" {kind}(" in line or f" {kind}-start(" in line)


def table(rows: list[dict]) -> str:
    """Markdown."""
    head = "| slice | mesh (data, fsdp) | schedule | base | step | memory | TFLOP a chip | takes | moved | takes |"
    lines = [head, "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        used = row["arguments_gb"] + row["temporaries_gb"]
        lines.append(
            f"| {row['slice']} ({row['chips']}) | {row['mesh']['data']}, {row['mesh']['fsdp']} | {row['schedule']} | "
            f"{row['base_gb']:.1f} GB | {used:.1f} GB | {row['limit_gb']:.0f} GB | {row['tflop_a_chip']:.0f} | "
            f"{row['compute_s']:.2f} s | {row['gathered_gb_a_chip'] + row['summed_gb_a_chip']:.1f} GB | "
            f"{row['links_s']:.2f} s |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", nargs="+", default=["v5e:2x4", "v5e:8x8", "v5e:16x16", "v5p:8x8x8"])
    parser.add_argument("--output", type=Path, required=True, help="a folder; pods.json goes there")
    words = parser.parse_args()
    path = words.output / "pods.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    with mock.patch("e5jax.attention.backend", lambda: "tpu"):  # which kernel to lower
        for name in words.slices:
            if name not in {row["slice"] for row in rows}:
                rows.append(compiled(name))
                files.write_json(path, rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
