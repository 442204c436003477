"""The paper's run at its real shapes, compiled for 8 simulated devices; no weight exists in memory."""

import collections
import dataclasses
import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import at_7b
from e5jax import schedule
from e5jax.decoder import MISTRAL_7B_V01
from e5jax.layers import Dropout
from e5jax.packing import choose_shape
from e5jax.sharding import make_mesh
from e5jax.step import build
from tests import counting, tiny


pytestmark = pytest.mark.slow
GB = 1e9
LIMIT = 0.95 * 80 * GB


@functools.cache
def abstract():
    """-> (trained parameters, frozen weights, what a token costs by `remat`)"""
    graphdef, params, frozen = jax.eval_shape(partial(build, at_7b.paper(), MISTRAL_7B_V01), jax.random.key(0))
    costs = partial(schedule.cost, graphdef, params, frozen, 512, 1, jnp.float32, Dropout(adapters=0.1, hidden=0.0))
    return params, frozen, functools.cache(costs)


def compiled(mesh_shape, wanted):
    """-> (executable of the cheapest step that fits, bytes of the base a device and whole, shapes of its weights, how
    many parameters are trained)"""
    mesh = make_mesh(mesh_shape)
    config = at_7b.paper()
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
    params, frozen, costs = abstract()
    # This backend keeps bf16 activations as f32, and f32 copies of the weights, one for kept chunks, one for others.
    adapters = sum(x.size * 4 for x in jax.tree.leaves(params))
    fixed = 5 * at_7b.bytes_a_device(frozen, mesh) + 4 * adapters  # with slopes and moments
    tokens = np.mean([sum(texts) for texts in lengths]) / 8
    work = schedule.Work(tokens=tokens, layers=32, fixed=fixed, costs=costs)

    def attempt(chosen):
        packing = dataclasses.replace(config.packing, kept=chosen.kept)
        shape = choose_shape(lengths, 8, chosen.chunks, packing.spare, packing.widths)
        changed = dataclasses.replace(config, packing=packing, remat=chosen.remat)
        step, arguments = at_7b.step(changed, MISTRAL_7B_V01, shape)
        with jax.set_mesh(mesh):
            lowered = at_7b.jitted(step, arguments, mesh).lower(*arguments)
            executable = lowered.compile(tiny.jit.keywords["compiler_options"])  # the same buffers
        asked, flops = schedule.bytes_of(executable), work.flops(chosen) / MISTRAL_7B_V01.projection_weights
        print(f"{chosen}: {flops:.2f} N, {asked / GB:.1f} GB, predicted {work.bytes(chosen) / GB:.1f}")
        return executable, asked

    executable = schedule.fitting(work, wanted, LIMIT, attempt)
    leaves = jax.tree.leaves(frozen)
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    params = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    return executable, at_7b.bytes_a_device(frozen, mesh), whole, {x.shape for x in leaves}, params


def test_the_paper_s_step_fits_80_gb_with_a_copy_of_the_base_on_each_device():
    executable, base, whole, shapes, params = compiled((8, 1, 1), schedule.Wanted(chunks=None, kept=None, remat=None))
    memory = executable.memory_analysis()
    used = schedule.bytes_of(executable)
    print(f"arguments {memory.argument_size_in_bytes / GB:.2f} GB, temporaries {memory.temp_size_in_bytes / GB:.2f} GB")
    assert params == 41_943_040
    assert base == whole
    assert used <= 80 * GB
    layer_shapes = {s[1:] for s in shapes if s[1:]}  # a vector is no stack of layers, and a sum no weight
    for operation, shape in counting.collectives(executable.as_text()):
        assert shape not in shapes and shape not in layer_shapes, f"{operation} of a base weight {shape}"


def test_fsdp_keeps_an_eighth_of_the_base_on_each_device():
    executable, base, whole, _, _ = compiled((1, 8, 1), schedule.Wanted(chunks=47, kept=42, remat=True))
    memory = executable.memory_analysis()
    print(
        f"base {base / GB:.2f} of {whole / GB:.2f} GB; arguments {memory.argument_size_in_bytes / GB:.2f} GB, "
        f"temporaries {memory.temp_size_in_bytes / GB:.2f} GB"
    )
    print(collections.Counter(counting.collectives(executable.as_text())))
    assert base <= whole / 8 * 1.05
