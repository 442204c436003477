"""What one text costs as it grows, with a window and without: `python -m benchmarks.length --output FOLDER`.

The vector of a text of 1,024 to 32,768 tokens, from the decoder of figure 5 at small scale (128 dimensions, 2 layers)
with random weights. Seconds are the least of three rounds, windows in turns; bytes are the temporaries that the
compiled program asks for (`memory_analysis`).

-> FOLDER/length.json, FOLDER/length.png
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tyro

from e5jax.command import exit_code


LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)
WINDOWS = {"window 1,024": 1024, "no window": None}
ROUNDS = 3
MODEL = {"dim": 128, "hidden": 256, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 32}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    """Seconds and memory of one text by its length."""

    output: str
    """Folder for the figures and the picture."""
    longest: int = LENGTHS[-1]
    """Leave out longer texts than this."""


def program(length: int, window: int | None) -> tuple[Callable[[], object], int]:
    """-> (the forward pass of one text, compiled; bytes of its temporaries)."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from e5jax.decoder import MISTRAL_7B_V01, Decoder
    from e5jax.encoder import embed
    from e5jax.packing import choose_shape, fill, place

    model = Decoder(dataclasses.replace(MISTRAL_7B_V01, **MODEL, window=window), jnp.float32, rngs=nnx.Rngs(0))
    graphdef, weights = nnx.split(model)
    lengths = np.array([length])
    shape = choose_shape([lengths], 1, 1, 0.0, (length,))
    bins = fill(lambda _: np.random.default_rng(0).integers(3, 32_000, length), lengths, place(lengths, shape), shape)
    bins = jax.device_put(bins)
    compiled = embed.lower(graphdef, (weights,), bins, shape.rows, jnp.dtype("float32")).compile()
    return lambda: jax.block_until_ready(compiled((weights,), bins)), compiled.memory_analysis().temp_size_in_bytes


def measure(length: int) -> dict[str, dict[str, float]]:
    """{window: {"seconds", "bytes"}} of one length."""
    programs = {name: program(length, window) for name, window in WINDOWS.items()}
    found = {name: {"seconds": float("inf"), "bytes": size} for name, (_, size) in programs.items()}
    for _ in range(ROUNDS):
        for name, (run, _) in programs.items():
            start = time.perf_counter()
            run()
            found[name]["seconds"] = min(found[name]["seconds"], time.perf_counter() - start)
    return found


def draw(figures: dict[int, dict[str, dict[str, float]]], path: Path) -> None:
    """Seconds and megabytes over length, both axes logarithmic, so that a slope of one is linear."""
    from e5jax.pictures import COLORS, pyplot, save

    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis, key, said, unit in ((axes[0], "seconds", "seconds", 1), (axes[1], "bytes", "MB of temporaries", 1e6)):
        for name, color in zip(WINDOWS, COLORS, strict=False):
            axis.plot([*figures], [row[name][key] / unit for row in figures.values()], "o-", color=color, label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks([*figures], [f"{length:,}" for length in figures])
        axis.set_xlabel("tokens of the text")
        axis.set_ylabel(said)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    save(figure, list(axes), path)


def run(config: Length) -> None:
    """Measure, print, write, draw."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {}
    for length in (length for length in LENGTHS if length <= config.longest):
        figures[length] = measure(length)
        said = [f"{name} {row['seconds']:.3f} s, {row['bytes'] / 1e6:.0f} MB" for name, row in figures[length].items()]
        print(f"{length:6,} tokens: {'; '.join(said)}", flush=True)
        (folder / "length.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, folder / "length.png")
    print(f"{folder / 'length.json'}\n{folder / 'length.png'}")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(tyro.cli(Length, prog="python -m benchmarks.length"))))
