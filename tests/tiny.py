"""A decoder small enough to compile in a second, random texts, and packed bins of them."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from e5jax import contrast, lora, loss
from e5jax.batch import Batch
from e5jax.decoder import PROJECTIONS, Decoder, DecoderConfig
from e5jax.layers import NO_DROPOUT
from e5jax.packing import Bins, BinShape, Placement, fill, place


# Every size is another, so that no transposed weight fits and a shape tells what it belongs to.
CFG = DecoderConfig(
    family="mistral",
    vocab_size=104,
    dim=24,
    hidden=40,
    layers=3,
    heads=6,
    kv_heads=2,
    head_dim=10,
    window=4,
    rope_theta=77.0,
    norm_eps=1e-5,
    qk_norm=False,
)
# For whole model folders: a vocabulary that a tokenizer can be trained for, and a window that whole texts fit in.
FOLDER_CFG = dataclasses.replace(
    CFG, vocab_size=500, layers=2, heads=4, kv_heads=2, head_dim=10, window=32, rope_theta=1e4
)
RANK = 5

# Compiling takes half as long, running these sizes no longer.
jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def decoder(seed: int = 0, dtype=jnp.float32, **changes) -> Decoder:
    """Random weights, the embeddings large enough for attention to be sharp."""
    return _fresh(_decoder(seed, dtype, tuple(changes.items())))


def adapted(model: Decoder, targets=PROJECTIONS, fresh: bool = False) -> Decoder:
    """A copy of a decoder with adapters; B random too, unless `fresh`."""
    return _hang(_fresh(model), tuple(targets), fresh)


@functools.cache
def _decoder(seed, dtype, changes):
    def make():
        model = Decoder(dataclasses.replace(CFG, **dict(changes)), dtype, rngs=nnx.Rngs(seed))
        model.embed[...] *= 50
        return model

    return jit(make)()


@functools.partial(jit, static_argnums=(1, 2))
def _hang(model, targets, fresh):
    lora.adapt(model, RANK, 2.0 * RANK, targets, jax.random.key(1))
    for i, target in enumerate(() if fresh else targets):
        b = lora.projections(model.layers)[target].adapter.b
        b[...] = 0.1 * jax.random.normal(jax.random.key(i), b.shape)
    return model


def _fresh(model):
    """Another module around the same arrays, for a test to change."""
    return jax.tree.map(lambda leaf: leaf, model)


def texts(lengths, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, CFG.vocab_size, length) for length in lengths]


def pack(texts, shape: BinShape, placement: Placement | None = None) -> tuple[Bins, np.ndarray]:
    """-> (bins, index of each text's vector)."""
    lengths = np.array([len(text) for text in texts])
    placement = placement or place(lengths, shape)
    return fill(lambda i: texts[i], lengths, placement, shape), placement.vector(shape.slots)


def batch(queries, passages, shape: BinShape) -> Batch:
    """Query i's own passage is passage i; the others are hard negatives."""
    bins, vector = pack([*queries, *passages], shape)
    return Batch(
        bins=bins,
        query_Q=vector[: len(queries)],
        passage_P=vector[len(queries) :],
        positive_Q=np.arange(len(queries), dtype=np.int32),
        negative_QK=np.zeros((len(queries), 0), np.int32),
        has_QK=np.zeros((len(queries), 0), bool),
        teacher_QE=None,
        teacher_PE=None,
        valid_P=np.ones(len(passages), bool),
        same_Q=np.arange(len(queries), dtype=np.int32),
        own_only_Q=None,
    )


def whose(positive_Q, valid_P, negatives=None, same_Q=None, own_only_Q=None) -> SimpleNamespace:
    """Who is whose passage, as a `Batch` says it. `negatives`: the hard negatives of each query, -1 for none."""
    count = len(positive_Q)
    negative_QK = np.full((count, 0), -1) if negatives is None else np.array(negatives)
    return SimpleNamespace(
        positive_Q=positive_Q,
        negative_QK=np.maximum(negative_QK, 0),
        has_QK=negative_QK >= 0,
        valid_P=valid_P,
        same_Q=np.arange(count) if same_Q is None else np.array(same_Q),
        own_only_Q=own_only_Q,
    )


def info_nce(q_QD, p_PD, positive_Q, valid_P, temperature):
    """The paper's loss."""
    return contrast.info_nce(q_QD, p_PD, whose(positive_Q, valid_P), temperature, contrast.Contrast())


def encode(model: Decoder, bins: Bins, shape: BinShape, **changes) -> jax.Array:
    """`loss.encode` in f32 without dropout, but for the changes."""
    options = dict(dtype=jnp.float32, kept=0, remat=False, dropout=NO_DROPOUT, dropout_key=None)
    return loss.encode(model, bins, shape.rows, **options | changes)


def equations(jaxpr):
    """Every equation of a jaxpr, those inside scan, cond, remat and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: _jaxpr(x) is not None):
            if (inner := _jaxpr(value)) is not None:
                yield from equations(inner)


def dots(jaxpr):
    """The matrix products of a jaxpr."""
    return [equation for equation in equations(jaxpr) if equation.primitive.name == "dot_general"]


def _jaxpr(value):
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") else None
