"""The rows at 7B on a GPU or TPU: random bf16 weights, 2,048 triples of MS-MARCO-like lengths, all devices as one.

The base is copied to every device where one holds it, else split over them (fsdp). A schedule that does not fit the
memory is left out and named; how much a step keeps is planned as in training (e5jax/schedule.py). G6 runs both sides
in processes of their own, which share one GPU (speed_beside.py).
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import speed_data, speed_flops
from benchmarks.speed_ours import OPTIMIZER, TEMPERATURE, to_batch
from benchmarks.speed_rows import Row, compared, interleave, measured
from benchmarks.speed_worker import timed
from e5jax import architecture, encoder, schedule
from e5jax.command import load_config
from e5jax.config import FromScratch, LoraConfig
from e5jax.contrast import Contrast
from e5jax.decoder import DecoderConfig
from e5jax.errors import FailedError, UserError
from e5jax.flops import executed, peak_flops, train_flops_per_token
from e5jax.formats import PAPER
from e5jax.layers import NO_DROPOUT
from e5jax.optim import adamw, learning_rate
from e5jax.packing import choose_shape, place
from e5jax.schedule import Schedule, Wanted
from e5jax.sharding import make_mesh, replicated, shard_count
from e5jax.step import init_state, make_step, place_model
from e5jax.train import to_devices, with_targets


CONFIG = Path(__file__).parents[1] / "configs" / "e5_mistral_7b.py"
PLANNED = "as planned"
# What is left to the planner is None; GradCache as others do it keeps no chunk.
SCHEDULES = {
    PLANNED: Wanted(chunks=None, kept=None, remat=None),
    "GradCache": Wanted(chunks=None, kept=0, remat=None),
}
RECOMPUTED = Wanted(chunks=1, kept=1, remat=True)  # G5's, on few triples
FEW_TRIPLES = 128  # of G5: 24k tokens, and 197k where every text is padded to PADDED
PADDED = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """A compiled step of one schedule."""

    turn: Callable[[], float]
    """Takes a step -> its seconds."""
    words: str
    """The schedule."""
    tokens: int
    flops: float
    compile_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Took:
    """What the steps of one schedule took."""

    ready: Ready
    seconds: list[float]


class Device:
    """A model with random weights on all devices of this process."""

    def __init__(self, cfg: DecoderConfig, triples: int, rounds: int, replicate: bool):
        self.cfg, self.triples, self.rounds = cfg, triples, rounds
        self.name = f"{jax.device_count()} {jax.devices()[0].device_kind}"
        self.mesh = make_mesh((-1, 1, 1) if replicate else (1, -1, 1))
        config = dataclasses.replace(
            load_config(str(CONFIG)),
            model=FromScratch(architecture=cfg, dtype="bfloat16"),
            lora=LoraConfig(dropout=0.0),
        )
        with jax.set_mesh(self.mesh):
            self.model = place_model(with_targets(config, cfg), cfg, None, self.mesh)
        self.peak = peak_flops(jax.devices(), jnp.bfloat16)

    def step(self, triples: int, wanted: Wanted, padded: bool) -> Ready:
        """Compile the cheapest step that fits the memory and take one. Raises FailedError where none does.

        `padded`: every text is as long as PADDED, and only its real tokens count.
        """
        rng, shards = np.random.default_rng(0), shard_count(self.mesh)
        sample = [speed_data.marco_lengths(triples, 512, 512, rng) for _ in range(12)]
        lengths = [np.concatenate(columns) for columns in sample]
        tokens = int(lengths[0].sum())
        if padded:
            lengths = [np.full_like(lengths[0], PADDED)]
        optimizer = adamw(learning_rate(1e-5, 0, 10_000), **OPTIMIZER)
        graphdef, params, frozen = self.model.graphdef, self.model.params, self.model.frozen

        def attempt(chosen: Schedule):
            shape = choose_shape(lengths, shards, chosen.chunks, 0.25, (512, 128))
            placement = place(lengths[0], shape)
            texts = speed_data.random_triples([*lengths[0].reshape(3, triples)], self.cfg.vocab_size, rng)
            jittable = make_step(
                graphdef,
                optimizer,
                shape.rows,
                temperature=TEMPERATURE,
                contrast=Contrast(),
                matryoshka=(),
                distill=None,
                dtype=jnp.bfloat16,
                kept=chosen.kept,
                remat=chosen.remat,
                dropout=NO_DROPOUT,
                seed=0,
            )
            batch = to_devices(to_batch(texts, placement, shape), mesh=self.mesh)
            jitted = jax.jit(
                functools.partial(jittable, None), donate_argnums=0, out_shardings=(layout, replicated(self.mesh))
            )
            traced = jitted.trace(state, frozen, batch)
            start = time.perf_counter()
            compiled = traced.lower().compile()
            seconds = time.perf_counter() - start
            used = placement.chunks_used / shape.chunks
            made = chosen, compiled, batch, executed(traced.jaxpr) * used, seconds
            return made, schedule.bytes_of(compiled)

        with jax.set_mesh(self.mesh), _memory_asked():
            state, layout = init_state(jax.tree.map(jnp.copy, params), optimizer, self.mesh)
            costs = functools.partial(
                schedule.cost, graphdef, params, frozen, 512, shards, jnp.dtype("bfloat16"), NO_DROPOUT
            )
            work = schedule.Work(
                tokens=sum(map(np.sum, lengths)) / len(lengths) / shards,
                layers=self.cfg.layers,
                fixed=schedule.bytes_a_device((state, params, params, frozen)),  # the copy's source is held, too
                costs=functools.cache(costs),
            )
            limit = schedule.memory_of(jax.local_devices()[0]) - schedule.bytes_a_device(params)
            chosen, compiled, batch, flops, seconds = schedule.fitting(work, wanted, limit, attempt)
            held = [state]

            def step():
                with jax.set_mesh(self.mesh):
                    held[0], metrics = compiled(held[0], frozen, batch)
                jax.block_until_ready((held[0], metrics))

            step()
        return Ready(turn=lambda: timed(step), words=str(chosen), tokens=tokens, flops=flops, compile_seconds=seconds)

    @functools.cached_property
    def schedules(self) -> tuple[dict[str, Took], list[str]]:
        """-> (the schedules that fit, what the others died of)."""
        fit, died = {}, []
        for name, wanted in SCHEDULES.items():
            try:
                ready = self.step(self.triples, wanted, padded=False)
                seconds = [ready.turn() for _ in range(self.rounds)]
                fit[name] = Took(ready=dataclasses.replace(ready, turn=_spent), seconds=seconds)
            except (FailedError, UserError) as error:
                died.append(f"{name}: {error}")
        if not fit:
            raise FailedError("no schedule fits: " + "; ".join(died))
        return fit, died

    @property
    def best(self) -> tuple[str, Took]:
        """The fastest schedule."""
        return min(self.schedules[0].items(), key=lambda named: statistics.median(named[1].seconds))


class _memory_asked:
    """Out of memory becomes a FailedError."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise FailedError(f"does not fit: {str(error).splitlines()[0][:120]}") from error


def _spent() -> float:
    """In the place of a turn whose arrays are let go: the next schedule needs the memory."""
    raise RuntimeError("this step's arrays are gone")


def g1(device: Device) -> Row:
    """Real tokens a second of the whole step."""
    name, took = device.best
    ready = took.ready
    limit = device.peak / (speed_flops.least(device.cfg, ready.tokens, 3 * device.triples, passes=2) / ready.tokens)
    others = [f"{n} ({t.ready.words}) {statistics.median(t.seconds):.1f} s" for n, t in device.schedules[0].items()]
    note = "; ".join([f"{name}, {ready.tokens:,} tokens, compiled in {ready.compile_seconds:.0f} s"] + others)
    speeds = [ready.tokens / seconds for seconds in took.seconds]
    return measured("G1", device.name, speeds, limit, "; ".join([note, *device.schedules[1]]))


def g2(device: Device) -> Row:
    """Executed matrix FLOP/s over the vendor's peak."""
    name, took = device.best
    useful = train_flops_per_token(device.cfg, adapters_only=True) * took.ready.tokens
    note = f"{name}; of real tokens without recomputation {useful / min(took.seconds) / device.peak:.2f}"
    return measured("G2", device.name, [took.ready.flops / s / device.peak for s in took.seconds], 1.0, note)


def g3(device: Device) -> Row:
    """Seconds of the whole step."""
    name, took = device.best
    least = speed_flops.least(device.cfg, took.ready.tokens, 3 * device.triples, passes=2) / device.peak
    return measured("G3", device.name, took.seconds, least, f"{name}, {took.ready.tokens:,} tokens")


def g4(device: Device) -> Row:
    """Passages of token ids through the Encoder."""
    rng = np.random.default_rng(0)
    _, *columns = speed_data.marco_lengths(2 * device.triples, 512, 512, rng)
    lengths = np.concatenate(columns)
    ids = [rng.integers(3, device.cfg.vocab_size, length, dtype=np.int32) for length in lengths]
    graphdef, _ = architecture.abstract(device.cfg, jnp.bfloat16)
    opened = encoder.Encoder(
        model=nnx.merge(graphdef, device.model.frozen),
        tokenizer=None,  # the texts are tokens already
        max_length=512,
        dtype=jnp.bfloat16,
        prompts=PAPER,
        digest="",
        mesh=device.mesh if jax.device_count() > 1 else None,
    )
    turn = lambda: opened.encode_ids(ids, encoder.silent)
    first = timed(turn)
    tokens = int(lengths.sum())
    limit = device.peak * tokens / speed_flops.least(device.cfg, tokens, len(ids), passes=1)
    note = f"{tokens:,} tokens in {len(ids):,} passages; the first time {first:.0f} s"
    return measured("G4", device.name, [tokens / timed(turn) for _ in range(device.rounds)], limit, note)


def g5(device: Device) -> Row:
    """Texts packed into rows against a row of PADDED tokens for each; the same texts, schedule and step otherwise."""
    triples = FEW_TRIPLES * shard_count(device.mesh)
    packed, padded = (device.step(triples, RECOMPUTED, padded=padded) for padded in (False, True))
    seconds = interleave({"packed": packed.turn, "padded": padded.turn}, device.rounds, 0.0)
    note = f"{packed.tokens:,} tokens in {3 * triples:,} texts; peer: each padded to {PADDED}"
    limit = device.peak * packed.tokens / speed_flops.least(device.cfg, packed.tokens, 3 * triples, passes=2)
    return compared("G5", device.name, packed.tokens, seconds["packed"], seconds["padded"], limit, note)


ROWS = {"G1": g1, "G2": g2, "G3": g3, "G4": g4, "G5": g5}
