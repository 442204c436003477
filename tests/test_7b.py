"""The paper's run at its real shapes, compiled for 8 simulated devices; no weight exists in memory."""

import collections
import math

import jax
import numpy as np
import pytest

from e5jax.decoder import MISTRAL_7B_V01
from e5jax.packing import choose_shape
from e5jax.sharding import make_mesh, shardings
from tests import at_7b, counting


pytestmark = pytest.mark.slow
GB = 1e9


def compiled(mesh_shape):
    """-> (executable of the step, bytes of base arguments a device, shapes of base weights, config's bin shape)."""
    config = at_7b.paper()
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
    step, arguments = at_7b.step(config, MISTRAL_7B_V01, shape)
    state, frozen, _ = arguments
    with jax.set_mesh(mesh):
        executable = at_7b.jitted(step, arguments, mesh).lower(*arguments).compile()
    frozen_layout = shardings(frozen, mesh)
    leaves = list(zip(jax.tree.leaves(frozen), jax.tree.leaves(frozen_layout), strict=True))
    base_bytes = sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x, _ in leaves)
    params = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    return executable, base_bytes, whole, {x.shape for x, _ in leaves}, params


def test_the_paper_s_step_fits_80_gb_with_a_copy_of_the_base_on_each_device():
    executable, base, whole, shapes, params = compiled((8, 1, 1))
    memory = executable.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f"arguments {memory.argument_size_in_bytes / GB:.2f} GB, temporaries {memory.temp_size_in_bytes / GB:.2f} GB")
    assert params == 41_943_040
    assert base == whole
    assert used <= 80 * GB
    layer_shapes = {s[1:] for s in shapes if s[1:]}  # a vector is no stack of layers, and a sum no weight
    for operation, shape in counting.collectives(executable.as_text()):
        assert shape not in shapes and shape not in layer_shapes, f"{operation} of a base weight {shape}"


def test_fsdp_keeps_an_eighth_of_the_base_on_each_device():
    executable, base, whole, _, _ = compiled((1, 8, 1))
    memory = executable.memory_analysis()
    print(
        f"base {base / GB:.2f} of {whole / GB:.2f} GB; arguments {memory.argument_size_in_bytes / GB:.2f} GB, "
        f"temporaries {memory.temp_size_in_bytes / GB:.2f} GB"
    )
    print(collections.Counter(counting.collectives(executable.as_text())))
    assert base <= whole / 8 * 1.05
