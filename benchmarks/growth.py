"""How cost grows: `python -m benchmarks.growth --output FOLDER`.

One LoRA step of a small Mistral (256 dimensions, 4 layers, window 4,096) with random weights and token ids, chunked
(GradCache), for
- batches of 128 to 8,192 pairs of 64 tokens,
- texts of 64 to 32,768 tokens, 65,536 tokens a step,
- 1 to 8 simulated devices, 1,024 pairs: what each of them computes and holds.
Bytes are what the compiled step asks for (arguments and temporaries, `memory_analysis`); tokens a second are those of
the second step on this machine. The devices are simulated, so nothing is timed there.

-> FOLDER/growth.json, FOLDER/growth.png
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from e5jax.command import exit_code
from e5jax.contrast import Contrast
from e5jax.errors import FailedError


CHUNK = 8_192  # tokens that are encoded at once, on all devices together
TOKENS = 65_536  # of a step, where the texts' length grows
SIZES = {
    "batch": (128, 256, 512, 1024, 2048, 4096, 8192),
    "length": (64, 256, 1024, 4096, 16_384, 32_768),
    "devices": (1, 2, 4, 8),
}
MODEL = {"dim": 256, "hidden": 896, "layers": 4, "heads": 4, "kv_heads": 1, "head_dim": 64}
QUERY, PASSAGE = 16, 48  # tokens of a pair where the length does not grow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """How work, time and memory grow with the batch, the texts' length and the devices."""

    output: str
    """Folder for the figures and the picture."""
    axes: tuple[Literal["batch", "length", "devices"], ...] = ("batch", "length", "devices")
    """What to let grow; the others keep the figures that the folder has."""
    largest: int | None = None
    """Leave out larger sizes than this."""


def lengths_of(axis: str, size: int):
    """-> (tokens of each query, of each passage)."""
    import numpy as np

    if axis == "length":
        pairs = TOKENS // (2 * size)
        return np.full(pairs, size), np.full(pairs, size)
    pairs = size if axis == "batch" else 1024
    return np.full(pairs, QUERY), np.full(pairs, PASSAGE)


def measure(axis: str, size: int) -> dict[str, float]:
    """One row: bytes a device, tokens that a device computes, and, on one device, tokens a second."""
    import jax
    import numpy as np

    from e5jax.packing import choose_shape, fill, place
    from e5jax.sharding import make_mesh

    devices = size if axis == "devices" else 1
    queries, passages = lengths_of(axis, size)
    lengths = np.concatenate([queries, passages])
    width = max(64, int(lengths.max()))
    chunks = max(2, int(lengths.sum()) // max(CHUNK, width * devices))
    shape = choose_shape([lengths], devices, chunks, 0.0, (width,))
    placement = place(lengths, shape)
    rng = np.random.default_rng(0)
    bins = fill(lambda i: rng.integers(3, 32_000, lengths[i]), lengths, placement, shape)
    mesh = make_mesh((devices, 1, 1), jax.devices()[:devices])
    compiled, state, arguments = step_of(batch_of(bins, placement.vector(shape.slots), len(queries)), shape.rows, mesh)
    memory = compiled.memory_analysis()
    row = {
        "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "computed": placement.chunks_used * shape.tokens,
        "tokens": int(lengths.sum()),
    }
    if devices == 1 and axis != "devices":
        state, _ = compiled(state, *arguments)
        jax.block_until_ready(state)
        start = time.perf_counter()
        jax.block_until_ready(compiled(state, *arguments))
        row["tokens_per_second"] = row["tokens"] / (time.perf_counter() - start)
    return row


def batch_of(bins, vector, queries: int):
    """Query i's own passage is passage i."""
    import numpy as np

    from e5jax.batch import Batch

    return Batch(
        bins=bins,
        query_Q=vector[:queries],
        passage_P=vector[queries:],
        positive_Q=np.arange(queries, dtype=np.int32),
        negative_QK=np.zeros((queries, 0), np.int32),
        has_QK=np.zeros((queries, 0), bool),
        valid_P=np.ones(len(vector) - queries, bool),
        same_Q=np.arange(queries, dtype=np.int32),
        own_only_Q=None,
        teacher_QE=None,
        teacher_PE=None,
    )


def step_of(batch, rows, mesh):
    """-> (compiled step, its state, its other arguments) of the small model."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from e5jax import lora
    from e5jax.decoder import MISTRAL_7B_V01, PROJECTIONS, Decoder
    from e5jax.layers import NO_DROPOUT
    from e5jax.optim import adamw
    from e5jax.sharding import replicated, shardings
    from e5jax.step import init_state, make_step
    from e5jax.train import to_devices

    cfg = dataclasses.replace(MISTRAL_7B_V01, **MODEL)
    model = Decoder(cfg, jnp.float32, rngs=nnx.Rngs(0))
    lora.adapt(model, 16, 32.0, PROJECTIONS, jax.random.key(0))
    graphdef, params, frozen = nnx.split(model, nnx.LoRAParam, ...)
    optimizer = adamw(lambda _: 1e-4, b1=0.9, b2=0.999, weight_decay=0.1, clip_norm=1.0)
    losses = {"temperature": 0.02, "contrast": Contrast(), "matryoshka": (), "distill": None}
    options = {"dtype": jnp.dtype("float32"), "kept": 0, "remat": False, "dropout": NO_DROPOUT, "seed": 0}
    step = make_step(graphdef, optimizer, rows, **losses, **options)
    with jax.set_mesh(mesh):
        params, frozen = jax.device_put((params, frozen), shardings((params, frozen), mesh))
        state, layout = init_state(params, optimizer, mesh)
        arguments = frozen, to_devices(batch, mesh=mesh)
        jitted = jax.jit(functools.partial(step, None), out_shardings=(layout, replicated(mesh)), donate_argnums=0)
        return jitted.lower(state, *arguments).compile(), state, arguments


def draw(figures: dict[str, dict[str, dict]], path: Path) -> None:
    """A column for what grows: tokens a second (or a device's tokens) above, bytes below."""
    from e5jax.pictures import COLORS, pyplot, save

    columns = [axis for axis in SIZES if axis in figures]
    names = {"batch": "pairs of 64 tokens", "length": "tokens of a text", "devices": "devices (simulated)"}
    plt = pyplot()
    figure, axes = plt.subplots(2, len(columns), figsize=(4 * len(columns), 6), layout="constrained", squeeze=False)
    for (above, below), axis in zip(axes.T, columns, strict=True):
        sizes = [int(size) for size in figures[axis]]
        rows = list(figures[axis].values())
        key, label = ("computed", "tokens a device") if axis == "devices" else ("tokens_per_second", "tokens a second")
        for panel, values, said in (
            (above, [row[key] for row in rows], label),
            (below, [row["bytes"] / 1e9 for row in rows], "GB a device"),
        ):
            panel.plot(sizes, values, "o-", color=COLORS[0])
            panel.set_xscale("log", base=2)
            panel.set_ylim(0, 1.1 * max(values))
            panel.set_xlabel(names[axis])
            panel.set_ylabel(said)
            panel.grid(alpha=0.3)
    save(figure, axes.flat, path)


def run(config: Growth) -> None:
    """Measure each axis in a process of its own, print, write, draw."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "growth.json"
    figures = json.loads(path.read_text()) if path.exists() else {}
    for axis in config.axes:
        # In its own process: how many devices there are is settled when JAX starts.
        simulated = f"--xla_force_host_platform_device_count={max(SIZES['devices'])}" if axis == "devices" else ""
        environment = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {simulated}".strip()}
        sizes = [str(size) for size in SIZES[axis] if config.largest is None or size <= config.largest]
        line = [sys.executable, "-m", "benchmarks.growth", "--row", axis, *sizes]
        said = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if said.returncode:
            raise FailedError(f"{' '.join(line)} exited with {said.returncode}")
        figures[axis] = json.loads(said.stdout.splitlines()[-1])
        path.write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, folder / "growth.png")
    print(f"{path}\n{folder / 'growth.png'}")


def rows(axis: str, sizes: Sequence[str]) -> int:
    """Measure in this process -> a line of JSON on standard output."""
    found = {}
    for size in sizes:
        found[size] = measure(axis, int(size))
        print(f"{axis} {size}: {found[size]}", file=sys.stderr, flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        sys.exit(rows(sys.argv[2], sys.argv[3:]))
    sys.exit(exit_code(lambda: run(tyro.cli(Growth, prog="python -m benchmarks.growth"))))
