"""What a training step keeps, recomputes or encodes in chunks, chosen from the memory at hand.

The batch is encoded in chunks. A chunk keeps its activations for the backward pass, or keeps only its vectors and is
encoded again (GradCache, arXiv 2101.06983); in either, layers keep the results of their products, or their input alone
(remat). All give the same gradient. `best` takes what costs the fewest matrix FLOPs among what is predicted to fit;
both figures come from abstract traces of the model, so they hold for every architecture. What the compiled step then
asks for decides: `fitting` tries the next best where a prediction was too low.
"""

import dataclasses
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from e5jax import flops, loss
from e5jax.errors import UserError
from e5jax.layers import Dropout
from e5jax.packing import Bins


log = logging.getLogger(__name__)

CHUNKS = (65_536, 32_768, 16_384, 8192, 4096, 2048)
"""Tokens of a chunk on a device, where the batch is not one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a step encodes its batch."""

    chunks: int
    """Parts of the mean batch that a device encodes one after the other."""
    kept: int
    """So many of them, the first, keep their activations."""
    remat: bool
    """Layers are recomputed in the backward pass."""

    def __str__(self):
        words = f"{self.chunks} chunks, {self.kept} of them keep their activations" if self.chunks > 1 else "one chunk"
        return words + ", layers recomputed" * self.remat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user has fixed; None: to be chosen."""

    chunks: int | None
    kept: int | None
    remat: bool | None

    @property
    def leaves_no_choice(self) -> bool:
        """Nothing is left to choose; a single chunk keeps its activations anyway."""
        return None not in (self.chunks, self.remat) and (self.chunks == 1 or self.kept is not None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one token, on one device."""

    forward: float
    """Matrix FLOPs."""
    backward: float
    """Matrix FLOPs, with what is recomputed."""
    kept: float
    """Bytes that the backward pass reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to do, on one device, and what it costs by whether layers are recomputed."""

    tokens: float
    """Of the mean batch."""
    layers: int
    fixed: float
    """Bytes of weights, optimiser, gradients."""
    costs: Callable[[bool], Cost]

    def flops(self, schedule: Schedule) -> float:
        """Matrix FLOPs a token."""
        cost = self.costs(schedule.remat)
        return cost.forward * (2 - schedule.kept / schedule.chunks) + cost.backward

    def bytes(self, schedule: Schedule) -> float:
        """What is kept, the chunk under way, and one of its layers: slopes, what lies between, values recomputed."""
        chunk = self.tokens / schedule.chunks
        at_once = schedule.kept + (schedule.kept < schedule.chunks)
        layer = (2 + 2 * schedule.remat) * self.costs(False).kept / self.layers
        return self.fixed + chunk * (at_once * self.costs(schedule.remat).kept + layer)


def cost(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    frozen: nnx.State,
    width: int,
    shards: int,
    dtype: jnp.dtype,
    dropout: Dropout,
    remat: bool,
) -> Cost:
    """Of a token in rows of `width`, with gradients for `params`; both states may be abstract."""

    def traced(rows: int):
        ints = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.int32)
        of_tokens, of_slots = ints(1, shards, rows * width), ints(1, shards, rows)
        bins = Bins(
            tokens_CST=of_tokens,
            positions_CST=of_tokens,
            segments_CST=of_tokens,
            last_CSN=of_slots,
            texts_CSN=of_slots,
            used_C=jax.ShapeDtypeStruct((1,), bool),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))

        def encode(params, frozen, bins, key):
            model = nnx.merge(graphdef, params, frozen)
            options = dict(dtype=dtype, remat=remat, dropout=dropout, dropout_key=key)
            return loss.encode(model, bins, ((width, rows),), kept=1, **options)

        def with_backward(params, *rest):
            return jax.vjp(lambda params: encode(params, *rest), params)

        forward, (vectors, pull_back) = jax.make_jaxpr(with_backward, return_shape=True)(params, frozen, bins, key)
        backward = jax.make_jaxpr(lambda pull_back, vectors: pull_back(vectors))(pull_back, vectors)
        kept = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back) if not _is_key(leaf)]
        return flops.executed(forward), flops.executed(backward), sum(kept)

    # What grows with the tokens: weights among the residuals do not.
    forward, backward, kept = (
        (two - one) / (2 * width * shards) for one, two in zip(traced(2), traced(4), strict=True)
    )
    return Cost(forward=forward, backward=backward, kept=kept)


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def best(work: Work, wanted: Wanted, limit: float) -> Schedule | None:
    """The cheapest schedule that is predicted to fit `limit` bytes; of those within a hundredth, of fewest chunks."""
    fit = (s for s in _schedules(work, wanted, limit) if work.bytes(s) <= limit)
    return min(fit, key=lambda s: (round(math.log(work.flops(s)), 2), s.chunks), default=None)


def leanest(work: Work, wanted: Wanted) -> Schedule:
    """The one that takes the least memory."""
    return min(_schedules(work, wanted, 0), key=work.bytes)


def _schedules(work, wanted, limit) -> Iterator[Schedule]:
    counts = sorted({1, *(math.ceil(work.tokens / tokens) for tokens in CHUNKS)})
    for remat in (False, True) if wanted.remat is None else (wanted.remat,):
        for chunks in counts if wanted.chunks is None else (wanted.chunks,):
            none = Schedule(chunks=chunks, kept=0, remat=remat)
            whole = dataclasses.replace(none, kept=chunks)
            if wanted.kept is not None:
                yield dataclasses.replace(none, kept=max(chunks == 1, min(wanted.kept, chunks)))
            elif chunks == 1 or work.bytes(whole) <= limit:
                yield whole
            else:
                one = work.costs(remat).kept * work.tokens / chunks
                yield dataclasses.replace(none, kept=max(0, min(chunks - 1, int((limit - work.bytes(none)) / one))))


def fitting(work: Work, wanted: Wanted, limit: float, attempt: Callable[[Schedule], tuple[object, float]]):
    """What `attempt(schedule)`, -> (anything, bytes that it asks for), makes of the cheapest schedule that fits.

    Where the user has fixed all of it, that is taken, with a warning. An attempt whose compiler ran out of memory
    (`ran_out`) gives None. Raises UserError where nothing fits.
    """
    takes = lambda schedule, asked: f"{schedule} takes {asked / 1e9:.1f} GB a device, and {limit / 1e9:.1f} may be used"
    if wanted.leaves_no_choice:  # nothing to weigh, which takes seconds
        kept = max(wanted.chunks == 1, min(wanted.kept or 0, wanted.chunks))
        schedule = Schedule(chunks=wanted.chunks, kept=kept, remat=wanted.remat)
        made, asked = attempt(schedule)
        if made is None:
            raise UserError(f"the step does not fit: {takes(schedule, asked)}: lower packing.kept or raise .chunks")
        if asked > limit:
            log.warning(takes(schedule, asked))
        return made
    allowed = limit
    while True:
        schedule = best(work, wanted, allowed) or leanest(work, wanted)
        made, asked = attempt(schedule)
        if made is not None and asked <= limit:
            return made
        said = takes(schedule, asked)
        if schedule == leanest(work, wanted):
            raise UserError(
                f"the step does not fit: {said}. Split the base over the devices (--mesh 1 -1 1), lower batch_size or "
                "data.max_length, or raise packing.memory_gb"
            )
        log.info("%s: trying the next", said)
        allowed = 0.98 * min(allowed, limit * work.bytes(schedule) / asked)


def ran_out(error: Exception, limit: float) -> float:
    """Bytes that a step would have asked of a device whose compiler found no room for it; other errors go on.

    XLA for TPUs ends like that where it is asked to compile what does not fit.
    """
    said = str(error)
    if "RESOURCE_EXHAUSTED" not in said and "Ran out of memory" not in said:
        raise error
    used = re.search(r"Used ([\d.]+)([GM]) of", said)
    asked = float(used[1]) * {"G": 2**30, "M": 2**20}[used[2]] if used else 0.0
    return max(asked, 1.02 * limit)


def bytes_of(compiled) -> float:
    """What a compiled program asks of each device."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def bytes_a_device(tree) -> int:
    """Of arrays as they are laid out."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory_of(device: jax.Device) -> float:
    """Bytes that a step may take on a device: 95 % of what the device says; on a CPU its share of half of the memory.

    Raises UserError for a device that does not say.
    """
    if device.platform == "cpu":
        return _memory_of_machine() / 2 / jax.local_device_count()
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        raise UserError(f"{device.device_kind} does not tell its memory: set packing.memory_gb, or packing.chunks")
    return 0.95 * limit


def _memory_of_machine():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))  # "max" where there is no limit
    except (OSError, ValueError):
        return physical
