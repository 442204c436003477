"""What is kept, recomputed or encoded in chunks: the cheapest that fits, by figures that the compiled step confirms."""

import dataclasses
import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import at_7b
from e5jax import schedule
from e5jax.decoder import MISTRAL_7B_V01
from e5jax.errors import UserError
from e5jax.layers import NO_DROPOUT
from e5jax.packing import BinShape
from e5jax.schedule import Schedule, Wanted, Work
from e5jax.step import build
from tests import tiny
from tests.test_structure import TINY


ANY = Wanted(chunks=None, kept=None, remat=None)
BATCH = 451_000  # tokens of 2,048 MS-MARCO-like triples
GB = 1e9


@functools.cache
def cost_at_7b(remat):
    config = at_7b.paper()
    model = jax.eval_shape(functools.partial(build, config, MISTRAL_7B_V01), jax.random.key(0))
    return schedule.cost(*model, 512, 1, jnp.bfloat16, NO_DROPOUT, remat)


def work_at_7b():
    return Work(tokens=BATCH, layers=32, fixed=15.2 * GB, costs=cost_at_7b)


def test_a_token_costs_two_flops_a_weight_and_pass_and_keeps_a_vector_a_layer_where_layers_are_recomputed():
    weights = MISTRAL_7B_V01.projection_weights
    kept, remat = cost_at_7b(False), cost_at_7b(True)
    # Adapters and attention come on top; the last layer's are for the tokens that are read.
    assert kept.forward == remat.forward == pytest.approx(2 * weights, rel=0.03)
    assert kept.backward == pytest.approx(2 * weights, rel=0.03)
    assert remat.backward == pytest.approx(3.46 * weights, rel=0.03)
    assert remat.kept == pytest.approx(32 * 4096 * 2, rel=0.01)
    assert 2.5e6 < kept.kept < 3.2e6


def test_with_more_memory_a_step_costs_no_more_and_what_is_chosen_fits():
    work, before = work_at_7b(), math.inf
    for gigabytes in (40, 60, 76, 134, 190, 400, 2000):
        found = schedule.best(work, ANY, gigabytes * GB)
        assert work.bytes(found) <= gigabytes * GB
        assert work.flops(found) <= before * 1.01
        before = work.flops(found)
    assert found == Schedule(chunks=1, kept=1, remat=False)


def test_the_paper_s_batch_keeps_nearly_every_chunk_with_layers_recomputed_on_a_card_of_141_gb():
    found = schedule.best(work_at_7b(), ANY, 0.95 * 141 * GB)
    assert found.remat and found.kept > 0.9 * found.chunks > 1


def test_what_the_user_fixes_stays_fixed():
    assert schedule.best(work_at_7b(), Wanted(chunks=32, kept=0, remat=False), 76 * GB) == Schedule(
        chunks=32, kept=0, remat=False
    )
    assert schedule.best(work_at_7b(), dataclasses.replace(ANY, remat=True), 2000 * GB) == Schedule(
        chunks=1, kept=1, remat=True
    )
    some = schedule.best(work_at_7b(), Wanted(chunks=64, kept=None, remat=False), 76 * GB)
    assert some.chunks == 64 and 0 < some.kept < 64
    assert schedule.best(work_at_7b(), Wanted(chunks=1, kept=None, remat=False), 76 * GB) is None


SMALL = dataclasses.replace(tiny.CFG, dim=128, hidden=448, heads=4, kv_heads=2, head_dim=32, layers=4)


@functools.cache
def cost_of_small(remat):
    model = jax.eval_shape(functools.partial(build, at_7b.paper(**TINY), SMALL), jax.random.key(0))
    return schedule.cost(*model, 128, 1, jnp.float32, NO_DROPOUT, remat)


@pytest.mark.parametrize(
    ("chunks", "kept", "remat"),
    [(1, 1, False), (1, 1, True), (8, 0, False), (8, 8, False), (8, 8, True), (8, 4, False)],
)
def test_the_compiled_step_takes_the_memory_that_was_predicted(chunks, kept, remat, capsys):
    packing = dataclasses.replace(at_7b.paper().packing, kept=kept)
    config = at_7b.paper(**TINY, batch_size=64, remat=remat, packing=packing)
    shape = BinShape(chunks=chunks, shards=1, rows=((128, 64 // chunks),), slots=128)
    step, arguments = at_7b.step(config, SMALL, shape)
    compiled = tiny.jit(step, donate_argnums=0).lower(*arguments).compile()
    state, frozen, _ = arguments
    size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    work = Work(tokens=64 * 128, layers=4, fixed=size((state, state.params, frozen)), costs=cost_of_small)
    predicted = work.bytes(Schedule(chunks=chunks, kept=kept, remat=remat))
    asked = schedule.bytes_of(compiled)
    with capsys.disabled():
        print(f"\n{chunks} chunks, {kept} kept, remat {remat}: {asked / 1e6:.1f} MB, predicted {predicted / 1e6:.1f}")
    assert predicted / 1.4 < asked < 1.4 * predicted


def attempts(factor):
    """-> (what was tried, an attempt whose step asks for `factor` times what was predicted)"""
    tried, work = [], work_at_7b()
    return tried, lambda s: (tried.append(s) or s, factor * work.bytes(s))


def test_where_a_step_asks_for_more_than_predicted_the_next_best_is_tried():
    tried, attempt = attempts(1.3)
    found = schedule.fitting(work_at_7b(), ANY, 150 * GB, attempt)
    assert found == tried[-1] and len(tried) == 2
    assert 1.3 * work_at_7b().bytes(found) <= 150 * GB


def test_a_step_that_fits_in_no_way_is_an_error_that_says_what_to_do():
    _, attempt = attempts(1.0)
    with pytest.raises(UserError, match=r"does not fit: .* GB a device, and 15.0 may be used. Split the base"):
        schedule.fitting(work_at_7b(), ANY, 15 * GB, attempt)


def test_a_schedule_that_the_user_fixed_is_taken_with_a_warning(caplog):
    tried, attempt = attempts(1.0)
    with caplog.at_level(logging.WARNING):
        schedule.fitting(work_at_7b(), Wanted(chunks=1, kept=None, remat=True), 20 * GB, attempt)
    assert tried == [Schedule(chunks=1, kept=1, remat=True)] and "may be used" in caplog.text


def test_a_cpu_s_devices_share_half_of_its_memory():
    device = jax.local_devices()[0]
    assert 0 < schedule.memory_of(device) * jax.local_device_count() < 2**50
    assert np.isclose(schedule.memory_of(device) * 2 * jax.local_device_count(), schedule._memory_of_machine())


def test_a_schedule_whose_compiler_runs_out_of_memory_is_one_that_does_not_fit():
    """As XLA for TPUs says it; the next leaner one is tried, and what the user fixed is refused."""
    said = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 3.00G of 1G"
    )
    assert schedule.ran_out(RuntimeError(said), 1e9) == 3 * 2**30
    assert schedule.ran_out(RuntimeError("RESOURCE_EXHAUSTED: no more"), 1e9) == 1.02e9
    with pytest.raises(RuntimeError, match="a bug"):
        schedule.ran_out(RuntimeError("a bug"), 1e9)
    work, limit, tried = work_at_7b(), 134 * GB, []

    def attempt(chosen):
        tried.append(chosen)
        return (chosen, 1.0) if len(tried) == 3 else (None, 1.2 * limit)

    made = schedule.fitting(work, ANY, limit, attempt)
    assert made is tried[2] and work.bytes(tried[2]) < work.bytes(tried[0])
    fixed = Wanted(chunks=4, kept=2, remat=False)
    with pytest.raises(UserError, match="does not fit: 4 chunks, 2 of them"):
        schedule.fitting(work, fixed, limit, lambda chosen: (None, 2.0 * limit))
