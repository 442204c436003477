"""The paper's run at its real shapes, compiled for 8 simulated devices; no weight exists in memory."""

import dataclasses
import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e5jax.batch import Batch
from e5jax.command import load_config
from e5jax.config import FromScratch
from e5jax.decoder import MISTRAL_7B_V01
from e5jax.layers import Dropout
from e5jax.optim import adamw, learning_rate
from e5jax.packing import Bins, choose_shape
from e5jax.sharding import batch_shardings, make_mesh, replicated, shardings
from e5jax.step import TrainState, build, make_step
from e5jax.train import with_targets


pytestmark = pytest.mark.slow
GB = 1e9


def compiled(mesh_shape):
    """-> (executable of the step, bytes of base arguments a device, shapes of base weights, config's bin shape)."""
    config = load_config(str(Path(__file__).parents[1] / "configs" / "e5_mistral_7b.py"))
    config = dataclasses.replace(config, model=FromScratch(architecture=MISTRAL_7B_V01, dtype="bfloat16"))
    config = with_targets(config, MISTRAL_7B_V01)
    mesh = make_mesh(mesh_shape)
    rng = np.random.default_rng(0)
    # Queries of 20 to 80 tokens with their instruction; passages around 150 tokens, some cut at 512.
    lengths = [
        np.concatenate(
            [
                rng.integers(20, 80, config.batch_size),
                np.clip(rng.lognormal(4.8, 0.8, 2 * config.batch_size), 4, 512).astype(int),
            ]
        )
        for _ in range(12)
    ]
    packing = config.packing
    shape = choose_shape(lengths, 8, packing.chunks, packing.spare, packing.widths)
    optimizer = adamw(learning_rate(1e-4, 100, config.steps), b1=0.9, b2=0.999, weight_decay=0.1, clip_norm=1.0)

    def make(key):
        _, params, frozen = build(config, MISTRAL_7B_V01, key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), frozen

    graphdef = jax.eval_shape(lambda k: build(config, MISTRAL_7B_V01, k)[0], jax.random.key(0))
    state, frozen = jax.eval_shape(make, jax.random.key(0))
    queries, passages = config.batch_size, 2 * config.batch_size
    ints = lambda *s: jax.ShapeDtypeStruct(s, jnp.int32)
    bin_ints = lambda last: ints(shape.chunks, shape.shards, last)
    batch = Batch(
        bins=Bins(
            tokens_CST=bin_ints(shape.tokens),
            positions_CST=bin_ints(shape.tokens),
            segments_CST=bin_ints(shape.tokens),
            last_CSN=bin_ints(shape.slots),
            texts_CSN=bin_ints(shape.slots),
            used_C=jax.ShapeDtypeStruct((shape.chunks,), jnp.bool_),
        ),
        query_Q=ints(queries),
        passage_P=ints(passages),
        positive_Q=ints(queries),
        negative_QK=ints(queries, 1),
        has_QK=jax.ShapeDtypeStruct((queries, 1), jnp.bool_),
        valid_P=jax.ShapeDtypeStruct((passages,), jnp.bool_),
        teacher_QE=None,
        teacher_PE=None,
    )
    state_layout, frozen_layout = shardings((state, frozen), mesh)
    batch_layout = batch_shardings(batch, mesh, lambda x: 1 if x.ndim == 3 else None)
    step = make_step(
        graphdef,
        optimizer,
        shape.rows,
        temperature=config.temperature,
        matryoshka=(),
        distill=None,
        dtype=jnp.bfloat16,
        remat=config.remat,
        dropout=Dropout(adapters=config.lora.dropout, hidden=0.0),
        seed=0,
    )
    with jax.set_mesh(mesh):
        jitted = jax.jit(
            functools.partial(step, None),
            donate_argnums=0,
            in_shardings=(state_layout, frozen_layout, batch_layout),
            out_shardings=(state_layout, replicated(mesh)),
        )
        executable = jitted.lower(state, frozen, batch).compile()
    leaves = list(zip(jax.tree.leaves(frozen), jax.tree.leaves(frozen_layout), strict=True))
    base_bytes = sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x, _ in leaves)
    params = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    return executable, base_bytes, whole, {x.shape for x, _ in leaves}, params


def collectives(executable):
    """[(operation, shape of its result)] of the compiled program."""
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    pattern = re.compile(rf"= \(?(\w+)\[([\d,]*)\].* ({names})")
    found = []
    for line in executable.as_text().splitlines():
        if match := pattern.search(line.split(", metadata")[0]):
            found.append((match[3], tuple(int(n) for n in match[2].split(",") if n)))
    return found


def test_the_paper_s_step_fits_80_gb_with_a_copy_of_the_base_on_each_device():
    executable, base, whole, shapes, params = compiled((8, 1, 1))
    memory = executable.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f"arguments {memory.argument_size_in_bytes / GB:.2f} GB, temporaries {memory.temp_size_in_bytes / GB:.2f} GB")
    assert params == 41_943_040
    assert base == whole
    assert used <= 80 * GB
    layer_shapes = {s[1:] for s in shapes}
    for operation, shape in collectives(executable):
        assert shape not in shapes and shape not in layer_shapes, f"{operation} of a base weight {shape}"


def test_fsdp_keeps_an_eighth_of_the_base_on_each_device():
    executable, base, whole, _, _ = compiled((1, 8, 1))
    memory = executable.memory_analysis()
    print(
        f"base {base / GB:.2f} of {whole / GB:.2f} GB; arguments {memory.argument_size_in_bytes / GB:.2f} GB, "
        f"temporaries {memory.temp_size_in_bytes / GB:.2f} GB"
    )
    print({c: collectives(executable).count(c) for c in set(collectives(executable))})
    assert base <= whole / 8 * 1.05
