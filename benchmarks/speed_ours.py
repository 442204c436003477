"""Our side of benchmarks/run.py, as a worker: the product's own step, packing and Encoder.

It also runs the merged-weight step (speed_merged.py) that C10 compares with, in a process of its own.
"""

import contextlib
import functools
import json
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import speed_data, speed_merged
from benchmarks.speed_worker import reset_peak, serve, timed
from e5jax import encoder, hf, models, peft_format
from e5jax.batch import Batch
from e5jax.config import PackingConfig
from e5jax.contrast import Contrast
from e5jax.errors import FailedError
from e5jax.flops import executed
from e5jax.layers import NO_DROPOUT
from e5jax.optim import adamw, learning_rate
from e5jax.packing import BinShape, Placement, choose_shape, fill, place
from e5jax.sharding import make_mesh, replicated
from e5jax.step import init_state, make_step
from e5jax.train import to_devices


TEMPERATURE = 0.02
OPTIMIZER = {"b1": 0.9, "b2": 0.999, "weight_decay": 0.1, "clip_norm": 1.0}


class Ours:
    """Weights by dtype, and what is to be timed by name."""

    def __init__(self):
        self.mesh = make_mesh((-1, 1, 1))
        self.weights = {}
        self.cases = {}

    def _adapted(self, folder, dtype):
        """-> (model's shape, graphdef, adapters, frozen weights in dtype)."""
        if (folder, dtype) not in self.weights:
            cfg = hf.read_config(Path(folder)).architecture
            base = models.read_weights(Path(folder), cfg, self.mesh, jnp.dtype(dtype))
            adapted = peft_format.load_adapter(Path(folder) / "adapter", base)
            self.weights[folder, dtype] = cfg, *nnx.split(adapted, nnx.LoRAParam, ...)
        return self.weights[folder, dtype]

    def train(
        self, name: str, folder: str, batch: str, dtype: str, chunks: int, remat: bool, widths: list[int]
    ) -> dict:
        """Prepare a step and take it once -> its loss, gradient norm, FLOPs, shape, and seconds to compile.

        The shape is that of a run on batches like this one, with the product's own margins.
        """
        triples, sample = speed_data.read_batch(batch)
        shape = choose_shape(sample, 1, chunks, PackingConfig().spare, widths)
        placement = None if shape is None else place(triples.lengths, shape)
        if placement is None:
            raise FailedError(f"the batch does not fit {chunks} chunks of rows {widths}")
        _, graphdef, params, frozen = self._adapted(folder, dtype)
        optimizer = adamw(learning_rate(1e-5, 0, 10_000), **OPTIMIZER)
        step = make_step(
            graphdef,
            optimizer,
            shape.rows,
            temperature=TEMPERATURE,
            contrast=Contrast(),
            matryoshka=(),
            distill=None,
            dtype=jnp.dtype(dtype),
            kept=0,
            remat=remat,
            dropout=NO_DROPOUT,
            seed=0,
        )
        with jax.set_mesh(self.mesh):
            arrays = to_devices(to_batch(triples, placement, shape), mesh=self.mesh)
            state, layout = init_state(jax.tree.map(jnp.copy, params), optimizer, self.mesh)
            jitted = jax.jit(
                functools.partial(step, None), donate_argnums=0, out_shardings=(layout, replicated(self.mesh))
            )
            facts = self._prepare(name, jitted, state, frozen, arrays)
        return {
            **facts,
            "rows": list(shape.rows),
            "chunks": placement.chunks_used,
            "computed": placement.chunks_used * shape.tokens,
        }

    def merged(self, name: str, folder: str, batch: str, dtype: str, pads: list[int], texts: int) -> dict:
        """The same of the merged-weight step; `pads`: tokens that queries and passages are padded to.

        `texts` are encoded at a time.
        """
        triples, _ = speed_data.read_batch(batch)
        cfg, _, params, frozen = self._adapted(folder, dtype)
        optimizer = speed_merged.optimizer(1e-5, **OPTIMIZER)
        adapters = jax.tree.map(jnp.copy, speed_merged.adapters_of(params))
        scale = peft_format.read_adapter_config(Path(folder) / "adapter")
        step = speed_merged.make_step(cfg, optimizer, scale.alpha / scale.rank, TEMPERATURE, jnp.dtype(dtype))
        arrays = jax.device_put(speed_merged.pad(triples, pads, texts))
        state = adapters, optimizer.init(adapters)
        jitted = jax.jit(step, donate_argnums=0)
        facts = self._prepare(name, jitted, state, speed_merged.base_of(frozen), arrays)
        return {**facts, "computed": sum(tokens.size for tokens, _ in arrays)}

    def _prepare(self, name, jitted, state, frozen, arrays):
        traced = jitted.trace(state, frozen, arrays)
        compiled = []
        compile_seconds = timed(lambda: compiled.append(traced.lower().compile()))
        held = {"state": state}

        def turn():
            with jax.set_mesh(self.mesh):
                held["state"], held["metrics"] = compiled[0](held["state"], frozen, arrays)
            jax.block_until_ready(held)

        seconds = timed(turn)
        self.cases[name] = turn
        metrics = {key: float(held["metrics"][key]) for key in ("loss", "grad_norm")}
        flops = executed(traced.jaxpr)
        return {**metrics, "compile_seconds": compile_seconds, "seconds": seconds, "flops": flops}

    def encode(self, name: str, folder: str, texts: list[str], instruction: str, dtype: str, vectors: str) -> dict:
        """Prepare encoding and do it once -> its FLOPs, seconds of the first time; vectors go to the file `vectors`."""
        opened = encoder.Encoder.load(folder, max_length=speed_data.LONGEST, dtype=dtype)
        encode = lambda: opened.encode(texts, instruction or None)
        out = []
        first = timed(lambda: out.append(encode()))
        np.save(vectors, out[0])
        with counting(encoder) as total:
            encode()
        self.cases[name] = encode
        return {"compile_seconds": first, "flops": sum(total)}

    def run(self, name: str) -> float:
        """Seconds of one turn."""
        return timed(self.cases[name])

    def train_share(self, lengths: str, chunks: int, widths: list[int]) -> float:
        """Real tokens of those computed: one shape for batches of text lengths, made from the first half of them."""
        batches = [np.array(batch) for batch in json.loads(Path(lengths).read_text())]
        half = len(batches) // 2
        shape = choose_shape(batches[:half], 1, chunks, PackingConfig().spare, widths)
        placements = [None if shape is None else place(batch, shape) for batch in batches[half:]]
        if None in placements:
            raise FailedError("a batch does not fit the shape of the others")
        return sum(map(np.sum, batches[half:])) / sum(p.chunks_used * shape.tokens for p in placements)

    def encode_share(self, lengths: str) -> tuple[float, int]:
        """-> (real tokens of those computed, how many shapes) of texts of such lengths."""
        lengths = np.array(json.loads(Path(lengths).read_text()))
        empty = lambda i: np.zeros(lengths[i], np.int32)
        rows = [rows for _, rows, *_ in encoder.pack_corpus(lengths, empty, 1, True)]
        computed = sum(width * count for bin_ in rows for width, count in bin_)
        return float(lengths.sum() / computed), len(set(rows))

    def roofline(self, dtype: str, shapes: list[list[int]], rounds: int) -> float:
        """The most FLOP/s of a product [M, K] x [K, N] with a float32 result, of the shapes and rounds."""
        product = jax.jit(lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.float32))
        best = 0.0
        for m, k, n in shapes:
            x, w = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
            turn = lambda x=x, w=w: product(x, w).block_until_ready()
            turn()
            best = max(best, 2 * m * k * n / min(timed(turn) for _ in range(rounds)))
        return best

    def forget(self) -> None:
        """Let go of all weights and cases."""
        self.weights.clear()
        self.cases.clear()

    def reset_peak(self) -> bool:
        """See speed_worker."""
        return reset_peak()


def to_batch(triples: speed_data.Triples, placement: Placement, shape: BinShape) -> Batch:
    """The arrays of a step; passages are the positives, then the negatives."""
    texts = [np.array(t) for t in (*triples.queries, *triples.positives, *triples.negatives)]
    vector, queries = placement.vector(shape.slots), len(triples.queries)
    return Batch(
        bins=fill(texts.__getitem__, triples.lengths, placement, shape),
        query_Q=vector[:queries],
        passage_P=vector[queries:],
        positive_Q=np.arange(queries, dtype=np.int32),
        negative_QK=np.arange(queries, 2 * queries, dtype=np.int32)[:, None],
        has_QK=np.ones((queries, 1), bool),
        valid_P=np.ones(2 * queries, bool),
        same_Q=np.arange(queries, dtype=np.int32),
        own_only_Q=None,
        teacher_QE=None,
        teacher_PE=None,
    )


@contextlib.contextmanager
def counting(module: ModuleType):
    """Gather the matrix FLOPs of every call of a module's jitted functions, in the list that it gives."""
    flops, jitted = [], {name: f for name, f in vars(module).items() if hasattr(f, "trace") and hasattr(f, "lower")}

    def counted(f):
        def call(*args, **kwargs):
            flops.append(executed(f.trace(*args, **kwargs).jaxpr))
            return f(*args, **kwargs)

        return call

    try:
        for name, f in jitted.items():
            setattr(module, name, counted(f))
        yield flops
    finally:
        for name, f in jitted.items():
            setattr(module, name, f)


def main() -> int:
    """Serve."""
    ours = Ours()
    names = ("train", "merged", "encode", "run", "train_share", "encode_share", "roofline", "reset_peak", "forget")
    return serve({name: getattr(ours, name) for name in names})


if __name__ == "__main__":
    sys.exit(main())
