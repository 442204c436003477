"""The paper's step at its real shapes, as shapes alone: no weight exists in memory."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from e5jax.architecture import Architecture
from e5jax.batch import Batch
from e5jax.command import load_config
from e5jax.config import FromScratch, TrainConfig
from e5jax.decoder import MISTRAL_7B_V01, DecoderConfig
from e5jax.layers import Dropout
from e5jax.optim import adamw, learning_rate
from e5jax.packing import Bins, BinShape
from e5jax.sharding import batch_shardings, replicated, shardings
from e5jax.step import TrainState, build, make_step
from e5jax.train import with_targets


def paper(**changes) -> TrainConfig:
    """Its config with random weights in bf16, and the changes."""
    config = load_config(str(Path(__file__).parents[1] / "configs" / "e5_mistral_7b.py"))
    return untrained(dataclasses.replace(config, **changes), MISTRAL_7B_V01)


def untrained(config: TrainConfig, cfg: Architecture) -> TrainConfig:
    """A config with random weights of a shape, in its dtype, in the place of its base."""
    model = FromScratch(architecture=cfg, dtype=getattr(config.model, "dtype", "bfloat16"))
    return with_targets(dataclasses.replace(config, model=model), cfg)


def step(config: TrainConfig, cfg: Architecture, shape: BinShape) -> tuple[Callable, tuple]:
    """-> (the step, its arguments: state, frozen weights, batch). A query has one hard negative."""
    optimizer = adamw(learning_rate(1e-4, 100, config.steps), b1=0.9, b2=0.999, weight_decay=0.1, clip_norm=1.0)

    def make(key):
        _, params, frozen = build(config, cfg, key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), frozen

    graphdef = jax.eval_shape(lambda key: build(config, cfg, key)[0], jax.random.key(0))
    state, frozen = jax.eval_shape(make, jax.random.key(0))
    run = make_step(
        graphdef,
        optimizer,
        shape.rows,
        temperature=config.temperature,
        contrast=config.contrast,
        matryoshka=(),
        distill=None,
        dtype=jnp.dtype(config.model.dtype),
        kept=config.packing.kept or 0,
        remat=bool(config.remat),
        dropout=Dropout(adapters=config.lora.dropout if config.lora else 0.0, hidden=config.dropout),
        seed=0,
    )
    return functools.partial(run, None), (state, frozen, batch(shape, config.batch_size))


def batch(shape: BinShape, queries: int) -> Batch:
    """The shapes of a batch."""
    ints = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.int32)
    bools = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bool_)
    of_bins = lambda last: ints(shape.chunks, shape.shards, last)
    return Batch(
        bins=Bins(
            tokens_CST=of_bins(shape.tokens),
            positions_CST=of_bins(shape.tokens),
            segments_CST=of_bins(shape.tokens),
            last_CSN=of_bins(shape.slots),
            texts_CSN=of_bins(shape.slots),
            used_C=bools(shape.chunks),
        ),
        query_Q=ints(queries),
        passage_P=ints(2 * queries),
        positive_Q=ints(queries),
        negative_QK=ints(queries, 1),
        has_QK=bools(queries, 1),
        valid_P=bools(2 * queries),
        same_Q=ints(queries),
        own_only_Q=None,
        teacher_QE=None,
        teacher_PE=None,
    )


def jitted(step: Callable, arguments: tuple, mesh) -> Callable:
    """The step laid out on a mesh as training lays it out."""
    state, frozen, batch = arguments
    state_layout, frozen_layout = shardings((state, frozen), mesh)
    batch_layout = batch_shardings(batch, mesh, lambda x: 1 if x.ndim == 3 else None)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state_layout, frozen_layout, batch_layout),
        out_shardings=(state_layout, replicated(mesh)),
    )


def matrices(cfg: DecoderConfig) -> dict[str, int]:
    """Elements of each projection of one layer."""
    query, key = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    inner = dict(q=query, k=key, v=key, o=query, gate=cfg.hidden, up=cfg.hidden, down=cfg.hidden)
    sizes = {name: cfg.dim * width for name, width in inner.items()}
    assert cfg.layers * sum(sizes.values()) == cfg.projection_weights
    return sizes


def bytes_a_device(tree, mesh) -> int:
    """Of all arrays together, laid out on a mesh."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings(tree, mesh)), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in pairs)


def elements(tree) -> int:
    """Of all arrays together."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
