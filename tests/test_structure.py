"""What the step multiplies and moves, read off its trace and its compiled program: no accelerator, no weights.

N: weights in the model's products; 2 N is one forward pass of a token. A trace's FLOPs are exact: whole numbers are
compared.
"""

import collections
import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from benchmarks import at_7b
from e5jax import architecture, encoder, flops
from e5jax.config import FromScratch, LoraConfig
from e5jax.decoder import MISTRAL_7B_V01
from e5jax.packing import BinShape
from e5jax.sharding import make_mesh
from tests import counting, tiny


CHUNKS, QUERIES = 4, 12
# Odd factors everywhere, so that no activation has as many elements as a weight.
SHAPE = BinShape(chunks=1, shards=2, rows=((320, 1), (192, 2)), slots=12)
TINY_SHAPE = BinShape(chunks=1, shards=1, rows=((37, 1),), slots=7)
TINY = dict(model=FromScratch(architecture=tiny.CFG, dtype="float32"), lora=LoraConfig(rank=5, dropout=0.0))

# (chunks, remat) -> FLOPs a weight and token. A single chunk keeps its activations.
SCHEDULES = {
    (1, False): 4.00,
    (1, True): 5.46,
    (CHUNKS, False): 6.00,  # GradCache
    (CHUNKS, True): 7.46,
}
READS = {"dynamic_slice", "slice", "squeeze", "reshape"}  # of a stack of weights
# The last layer's, where one token a text is read; queries meet the keys row by row, so all of them are computed.
READ_ALONE = ("o", "gate", "up", "down")


def step_of(cfg, shape, chunks, remat, pooling, **changes):
    """-> (step, its abstract arguments, its shape)"""
    shape = dataclasses.replace(shape, chunks=chunks)
    config = at_7b.paper(remat=remat, **changes)
    return *at_7b.step(config, dataclasses.replace(cfg, pooling=pooling), shape), shape


@functools.cache
def traced(chunks, remat, pooling):
    """The live jaxpr of the paper's step at 7B."""
    step, arguments, _ = step_of(MISTRAL_7B_V01, SHAPE, chunks, remat, pooling, batch_size=QUERIES)
    return counting.live(jax.make_jaxpr(step)(*arguments))


def runs(name, chunks, remat):
    """How often the product with a weight runs for a chunk: forward, for the gradient of its input, and again where its
    result was not kept. Remat leaves out the down-projection, whose result no gradient needs."""
    return 2 + (chunks > 1) + (remat and name != "down")


def predicted(cfg, shape, runs, pruned):
    """FLOPs of the products with weights; `pruned`: the last layer's run on slots instead of tokens."""
    total = 0
    for name, size in at_7b.matrices(cfg).items():
        last = shape.slots if pruned and name in READ_ALONE else shape.tokens
        rows = shape.shards * ((cfg.layers - 1) * shape.tokens + last)
        total += 2 * size * rows * shape.chunks * runs(name)
    return total


def sizes(cfg):
    return set(at_7b.matrices(cfg).values())


# FLOPs


@pytest.mark.parametrize(("chunks", "remat"), SCHEDULES)
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_flops_of_the_paper_s_step_are_those_of_its_schedule(chunks, remat, pooling, capsys):
    """Where one token a text is read, the last layer computes no other behind attention."""
    shape = dataclasses.replace(SHAPE, chunks=chunks)
    found = counting.weight_flops(traced(chunks, remat, pooling), sizes(MISTRAL_7B_V01))
    measured = found / (chunks * shape.shards * shape.tokens) / MISTRAL_7B_V01.projection_weights
    with capsys.disabled():
        print(f"\n{chunks} chunks, remat {remat}, pooling {pooling}: {measured:.4f} N")
    again = functools.partial(runs, chunks=chunks, remat=remat)
    assert found == predicted(MISTRAL_7B_V01, shape, again, pruned=pooling == "last")
    if pooling == "mean":
        assert measured == pytest.approx(SCHEDULES[chunks, remat], abs=0.005)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_encoding_is_one_forward_pass(pooling):
    cfg = dataclasses.replace(MISTRAL_7B_V01, pooling=pooling)
    graphdef, weights = architecture.abstract(cfg, jnp.bfloat16)
    run = lambda weights, bins: encoder.embed(graphdef, (weights,), bins, SHAPE.rows, jnp.dtype("bfloat16"))
    once = lambda name: 1
    jaxpr = counting.live(jax.make_jaxpr(run)(weights, at_7b.batch(SHAPE, QUERIES).bins))
    assert counting.weight_flops(jaxpr, sizes(cfg)) == predicted(cfg, SHAPE, once, pruned=pooling != "mean")


@pytest.mark.parametrize("lora", [TINY["lora"], None])
def test_the_flops_that_utilisation_counts_are_those_of_a_step_that_recomputes_nothing(lora):
    step, arguments, shape = step_of(tiny.CFG, TINY_SHAPE, 1, False, "mean", **TINY | dict(batch_size=3, lora=lora))
    found = counting.weight_flops(counting.live(jax.make_jaxpr(step)(*arguments)), sizes(tiny.CFG))
    assert found == shape.tokens * flops.train_flops_per_token(tiny.CFG, adapters_only=lora is not None)


@pytest.mark.parametrize(("chunks", "remat"), [(CHUNKS, True)])
def test_what_xla_compiles_multiplies_no_more_than_the_trace(chunks, remat):
    step, arguments, _ = step_of(tiny.CFG, TINY_SHAPE, chunks, remat, "last", batch_size=3, **TINY)
    trace = counting.weight_flops(counting.live(jax.make_jaxpr(step)(*arguments)), sizes(tiny.CFG))
    hlo = tiny.jit(step).lower(*arguments).compile().as_text()
    assert counting.compiled_weight_flops(hlo, sizes(tiny.CFG)) == trace


# What never exists


def made(jaxpr):
    """(primitive, result) of every equation that is no call of another jaxpr."""
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        for sub in inner:
            yield from made(sub)
        if not inner:
            yield from ((equation.primitive.name, out.aval) for out in equation.outvars)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(("chunks", "remat"), SCHEDULES)
def test_frozen_weights_are_read_and_nothing_of_their_shape_is_computed(chunks, remat, pooling):
    """Neither a gradient nor a sum with the adapters."""
    _, (_, frozen, _), _ = step_of(MISTRAL_7B_V01, SHAPE, chunks, remat, pooling, batch_size=QUERIES)
    weights = [collections.Counter(w.shape[1:]) for w in jax.tree.leaves(frozen["layers"]) if len(w.shape) > 2]
    assert len(weights) == 7
    of_a_weight = lambda value: any(weight <= collections.Counter(value.shape) for weight in weights)
    primitives = {name for name, value in made(traced(chunks, remat, pooling)) if of_a_weight(value)}
    assert primitives <= READS


@pytest.mark.parametrize("remat", [False, True])
def test_chunks_that_keep_their_activations_bring_no_second_copy_of_the_weights(remat):
    """JAX takes what is the same in every turn out of a loop, and the layers' weights are."""
    packing = dataclasses.replace(at_7b.paper().packing, kept=2)
    changes = dict(batch_size=QUERIES, packing=packing)
    step, arguments, _ = step_of(MISTRAL_7B_V01, SHAPE, CHUNKS, remat, "last", **changes)
    weights = [collections.Counter(w.shape[1:]) for w in jax.tree.leaves(arguments[1]["layers"]) if len(w.shape) > 2]
    loops = [e for e in tiny.equations(jax.make_jaxpr(step)(*arguments).jaxpr) if e.primitive.name == "scan"]
    assert len(loops) > 4
    stacked = [out.aval.shape for loop in loops for out in loop.outvars[loop.params["num_carry"] :]]
    assert not [shape for shape in stacked if any(weight <= collections.Counter(shape) for weight in weights)]


@pytest.mark.parametrize(("chunks", "remat"), SCHEDULES)
def test_no_product_of_the_step_in_bf16_mixes_dtypes(chunks, remat):
    jaxpr = traced(chunks, remat, "last")
    mixed = [e for _, e in counting.products(jaxpr, 1) if len({v.aval.dtype for v in e.invars}) > 1]
    assert not mixed


# What moves between devices, on 8 of them


@functools.cache
def compiled(sizes, chunks, remat):
    """-> (the compiled step of a small decoder on a mesh, its abstract arguments, its shape)"""
    mesh = make_mesh(sizes)
    shape = dataclasses.replace(TINY_SHAPE, shards=8)
    step, arguments, shape = step_of(tiny.CFG, shape, chunks, remat, "last", batch_size=8, **TINY)
    with jax.set_mesh(mesh):
        lowered = at_7b.jitted(step, arguments, mesh).lower(*arguments)
        return lowered.compile(tiny.jit.keywords["compiler_options"]).as_text(), arguments, shape


def test_with_a_copy_of_the_base_on_each_device_only_vectors_are_gathered():
    hlo, _, shape = compiled((8, 1, 1), chunks=1, remat=False)
    gathers = [dims for name, dims in counting.collectives(hlo) if name == "all-gather"]
    assert [math.prod(dims) for dims in gathers] == [8 * shape.slots * tiny.CFG.dim]


@pytest.mark.parametrize(("chunks", "remat"), [(1, False), (3, True)])
def test_with_a_split_base_one_layer_s_weights_are_gathered_at_a_time_and_no_activation(chunks, remat):
    hlo, (state, frozen, _), shape = compiled((1, 8, 1), chunks, remat)
    moved = counting.collectives(hlo)
    assert not [dims for _, dims in moved if shape.tokens in dims]
    gathers = {dims for name, dims in moved if name == "all-gather"}
    a_layer = {math.prod(w.shape[1:]) for w in jax.tree.leaves((frozen["layers"], state.params["layers"]))}
    a_layer |= {n * tiny.CFG.dim * TINY["lora"].rank for n in (2, 3)}  # gate and up, or q, k and v: grouped adapters
    vectors = chunks * 8 * shape.slots * tiny.CFG.dim
    assert {math.prod(dims) for dims in gathers} <= a_layer | {vectors, tiny.CFG.vocab_size * tiny.CFG.dim}
    # Kept for the backward pass, gathered weights would be the base once more (or all of it but the last layer).
    layers = tiny.CFG.layers
    stacks = {(n, math.prod(w.shape[1:])) for w in jax.tree.leaves(frozen["layers"]) for n in (layers - 1, layers)}
    arrays = [tuple(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", hlo)]
    assert not [
        dims for dims in arrays if math.prod(dims[1:]) > shape.tokens and (dims[0], math.prod(dims[1:])) in stacks
    ]


# The program for a TPU


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_the_paper_s_step_lowers_for_tpus_from_this_cpu(sizes, monkeypatch):
    """With plain attention; every product with a weight is bf16 by bf16, summed in f32."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # which attention asks how to walk its rows
    mesh = make_mesh(sizes)
    shape = dataclasses.replace(SHAPE, shards=sizes[0] * sizes[1])
    step, arguments, _ = step_of(MISTRAL_7B_V01, shape, CHUNKS, True, "last", batch_size=24)
    with jax.set_mesh(mesh):
        lowered = at_7b.jitted(step, arguments, mesh).trace(*arguments).lower(lowering_platforms=("tpu",))
    program = lowered.as_text()
    products = re.findall(r"stablehlo\.dot_general .*: \((.*?), (.*?)\) -> (\S+)", program)
    weights = {"x".join(map(str, w.shape[1:])) for w in jax.tree.leaves(arguments[1]["layers"]) if len(w.shape) > 2}
    with_weights = [p for p in products if any(f"<{w}x" in operand for w in weights for operand in p[:2])]
    assert len(with_weights) >= 7 * 3
    assert {tuple(t.rsplit("x", 1)[1] for t in p) for p in with_weights} == {("bf16>", "bf16>", "f32>")}
