"""Train an embedder: `python -m e5jax.train --config FILE.py`.

config → mesh, model, data, the one shape of a batch → for each step: batch → loss → AdamW
       → now and then held-out metrics and a checkpoint → curves.png and a table
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from e5jax import checkpoint, command, distributed, flops, formats, heldout, loop, lora, models, places
from e5jax import config as configs
from e5jax import schedule as schedules
from e5jax import workdir as workdirs
from e5jax.architecture import Architecture, Model
from e5jax.batch import TrainData, fit_shape, fits, prepare_data, sample_lengths
from e5jax.bert import BertConfig
from e5jax.checkpoint import abstract
from e5jax.config import FromScratch, Pretrained, TrainConfig
from e5jax.errors import UserError
from e5jax.evaluator import Evaluator, report
from e5jax.layers import Dropout
from e5jax.logbook import Logbook, NoLogbook
from e5jax.optim import adamw, learning_rate
from e5jax.packing import BinShape
from e5jax.schedule import Schedule
from e5jax.sharding import batch_shardings, local_shards, make_mesh, put, replicated, shard_count
from e5jax.step import TrainState, init_state, make_step, place_model, start_from


PROG = "python -m e5jax.train"


def train(config: TrainConfig) -> dict[str, float]:
    """Run, or resume, what the config says -> the metrics of the last evaluation (without one: of the last step).

    Of several processes, process 0 alone writes and prints. Raises UserError for what the user can mend,
    NonFiniteLossError where training broke down.
    """
    distributed.start(config.distributed)
    with distributed.first_speaks():
        return _train(config)


def _train(config: TrainConfig) -> dict[str, float]:
    if config.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb_project is set, but wandb is not installed: pip install wandb")
    mesh = make_mesh(config.mesh)
    shards, local = shard_count(mesh), local_shards(mesh)
    if config.batch_size % shards:
        raise UserError(f"batch_size {config.batch_size} is not a multiple of the {shards} devices that share it")
    workdir = places.place(config.workdir)
    workdirs.check_new_or_run(workdir)

    prompts, on_bad_record = config.data.prompts, config.data.on_bad_record
    heldouts = [heldout.load(s.name, s.sources, s.pool, prompts, on_bad_record) for s in config.eval]
    base, cfg, tokenizer, base_digest = open_base(config, mesh)
    config = with_targets(config, cfg)
    check_fits(config, cfg)
    train_data = prepare_data(config, tokenizer)
    facts = {
        "architecture": dataclasses.asdict(cfg),
        "data": train_data.fingerprint,
        "tokenizer": tokenizer.digest,
        "base": base_digest,
        "teacher": None,
    }
    distill = teacher = None
    if config.distill is not None:
        from e5jax.distill import learn_from  # which brings evaluation's dependencies

        train_data, distill, teacher, facts["teacher"] = learn_from(config, train_data, tokenizer, cfg.dim, mesh)
    stored = workdirs.check_resumable(workdir, config, facts)
    if stored is not None and distributed.agreed(
        distributed.is_first() and checkpoint.ends_with(workdir, config.steps), "process 0's look at the checkpoints"
    ):
        print(f"{workdir}: all {config.steps:,} steps are done", flush=True)
        return _reported(*workdirs.papers(workdir), heldouts)
    sample = sample_lengths(config, train_data)

    with jax.set_mesh(mesh):
        model = place_model(config, cfg, base, mesh)
        del base
        schedule = learning_rate(config.optim.peak_lr, config.optim.warmup_steps, config.steps)
        optim = config.optim
        optimizer = adamw(
            schedule, b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay, clip_norm=optim.clip_norm
        )
        params, frozen, graphdef = model.params, model.frozen, model.graphdef
        del model
        if config.init_from and checkpoint.newest_whole(workdir) is None:
            params = start_from(config.init_from, config, cfg, facts, params)
        state, layout = init_state(params, optimizer, mesh)
        del params

        dropout = Dropout(adapters=config.lora.dropout if config.lora else 0.0, hidden=config.dropout)
        dtype = jnp.dtype(config.model.dtype)

        def compiled(schedule: Schedule, shape: BinShape):
            step = make_step(
                graphdef,
                optimizer,
                shape.rows,
                temperature=config.temperature,
                contrast=config.contrast,
                matryoshka=config.matryoshka,
                distill=distill,
                dtype=dtype,
                kept=schedule.kept,
                remat=schedule.remat,
                dropout=dropout,
                seed=config.seed,
            )
            jitted = jax.jit(step, donate_argnums=1, out_shardings=(layout, replicated(mesh)))
            batch = to_devices(train_data.batch_of(shape, local, train_data.examples[0]), mesh=mesh)
            return jitted.lower(*abstract((teacher, state, frozen, batch))).compile()

        width = config.packing.widths[0]
        work = schedules.Work(
            tokens=sum(map(np.sum, sample)) / len(sample) / shards,
            layers=cfg.layers,
            fixed=schedules.bytes_a_device((teacher, state, state.params, frozen)),  # slopes are as large as parameters
            costs=functools.cache(
                partial(schedules.cost, graphdef, state.params, frozen, width, shards, dtype, dropout)
            ),
        )
        planned = plan_step(config, work, sample, mesh, workdirs.stored_plan(workdir, config, shards), compiled)
        facts_of_plan = facts, planned.schedule, planned.shape
        distributed.agreed("seen", "the others' look at the workdir")  # from here on it is written to
        if stored is None:
            base = nnx.to_pure_dict(frozen)
            base = distributed.fetched(base) if workdirs.keeps_base(config) else base
            if distributed.is_first():
                workdirs.create(workdir, config, cfg, *facts_of_plan, tokenizer, base)
            del base
        elif distributed.is_first():
            workdirs.write_config(workdir, config, *facts_of_plan)
        with contextlib.closing(
            checkpoint.Checkpoints(workdir, {"config": command.to_json(config), **facts})
        ) as checkpoints:
            done = checkpoints.latest()
            if done is not None:
                like = abstract(state)
                del state  # its memory is wanted
                params, opt_state = checkpoints.restore(done, like.params, like.opt_state)
                state = TrainState(put(np.int32(done), replicated(mesh)), params, opt_state)
                del params, opt_state
                print(f"{workdir}: going on after step {done}", flush=True)

            evaluator = Evaluator.make(
                graphdef, heldouts, tokenizer, prompts, config.data.max_length, cfg.dim, shards, dtype
            )
            flops_per_token = flops.train_flops_per_token(cfg, adapters_only=config.lora is not None)
            parts = loop.Parts(
                step=partial(planned.step, teacher),
                to_devices=partial(to_devices, mesh=mesh),
                evaluate=evaluator if heldouts else None,
                learning_rates=np.asarray(schedule(np.arange(config.steps))),
                examples=train_data.where,
                seconds_per_token=flops_per_token / flops.peak_flops(mesh.devices.flatten(), dtype),
            )
            plan = loop.Plan(
                steps=config.steps,
                eval_every=config.eval_every,
                checkpoint_every=config.checkpoint_every,
                profile=configs.profile_range(config.profile_steps) if config.profile_steps else None,
                skip_non_finite=config.skip_non_finite,
                limit_s=config.distributed.step_limit_s,
            )
            describe(config, cfg, state.params, planned, train_data, mesh)
            batches = train_data.batches(done or 0, config.steps, planned.shape, local)
            papers, sent = workdirs.papers(workdir)
            logbook = Logbook(papers, done, config.wandb_project, sent) if distributed.is_first() else NoLogbook()
            with contextlib.closing(logbook):
                loop.run(plan, parts, state, frozen, batches, done or 0, papers, logbook, checkpoints)
    return _reported(papers, sent, heldouts)


def _reported(papers, sent, heldouts):
    said = report(papers, heldouts) if distributed.is_first() else None
    sent()
    return distributed.agreed(said, "process 0's report")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """How a run takes its steps."""

    schedule: Schedule
    shape: BinShape
    step: Callable
    """Compiled: (teacher, state, frozen, batch) -> (state, metrics)."""
    bytes: float
    """What it asks of a device."""
    limit: float
    """What it may ask."""


def plan_step(
    config: TrainConfig,
    work: schedules.Work,
    sample: Sequence[np.ndarray],
    mesh: Mesh,
    stored: tuple[Schedule, BinShape] | None,
    compiled: Callable[[Schedule, BinShape], jax.stages.Compiled],
) -> Planned:
    """The schedule that the config asks for, or the cheapest that fits; `stored`: what the run began with.

    `sample`: lengths of the texts of batches all along the run.
    """
    packing = config.packing
    limit = packing.memory_gb * 1e9 if packing.memory_gb else schedules.memory_of(mesh.local_devices[0])
    wanted = schedules.Wanted(chunks=packing.chunks, kept=packing.kept, remat=config.remat)
    shape = None
    if stored is not None:
        wanted = schedules.Wanted(**dataclasses.asdict(stored[0]))
        shape = stored[1] if fits(stored[1], sample) else None  # the run may have been made longer

    def attempt(schedule):
        whole = len(sample) == config.steps
        of_step = shape or fit_shape(packing, schedule.chunks, sample, whole, shard_count(mesh))
        try:
            step = compiled(schedule, of_step)
        except jax.errors.JaxRuntimeError as error:
            return None, schedules.ran_out(error, limit)
        asked = schedules.bytes_of(step)
        return Planned(schedule=schedule, shape=of_step, step=step, bytes=asked, limit=limit), asked

    return schedules.fitting(work, wanted, limit, attempt)


def open_base(config: TrainConfig, mesh: Mesh) -> tuple[Model | None, Architecture, formats.Tokenizer, str | None]:
    """-> (model with weights or None, its shape, tokenizer, digest of the weights or None)."""
    match config.model:
        case Pretrained() as source:
            dtype = source.dtype if config.lora else "float32"
            opened = models.open_model(source.base, revision=source.revision, mesh=mesh, dtype=dtype)
            cfg = models.rearranged(opened.model.cfg, source.pooling, source.causal, source.keep_layers)
            model = models.changed(opened.model, cfg, source.keep_layers, mesh)
            return model, cfg, opened.tokenizer, opened.digest
        case FromScratch(tokenizer=None, architecture=BertConfig(family="xlm-roberta")):
            # transformers counts an XLM-R's positions from ids that are not 1, which ours gives to </s>.
            raise UserError(
                "model.tokenizer: an xlm-roberta takes a tokenizer whose padding has the id 1: name its folder"
            )
        case FromScratch(tokenizer=None) as source:
            texts = heldout.all_texts(config.data.train, config.data.prompts, config.data.on_bad_record)
            tokenizer = formats.train_tokenizer(texts, source.architecture.vocab_size)
        case FromScratch() as source:
            tokenizer = formats.Tokenizer.load(places.local(source.tokenizer))
    cfg = source.architecture
    if len(tokenizer) > cfg.vocab_size:
        raise UserError(
            f"model.architecture.vocab_size {cfg.vocab_size} is less than the tokenizer's {len(tokenizer)} tokens"
        )
    return None, cfg, tokenizer, None


def with_targets(config: TrainConfig, cfg: Architecture) -> TrainConfig:
    """With the names of the projections that get adapters. UserError for one that the model lacks."""
    if config.lora is None:
        return config
    targets = cfg.projections if config.lora.targets is None else config.lora.targets
    lora.check_targets(targets, cfg.projections)
    return dataclasses.replace(config, lora=dataclasses.replace(config.lora, targets=targets))


def check_fits(config: TrainConfig, cfg: Architecture) -> None:
    """UserError where the model has fewer positions or dimensions than the config asks for."""
    if cfg.longest is not None and config.data.max_length > cfg.longest:
        raise UserError(f"data.max_length {config.data.max_length}: this model takes at most {cfg.longest} tokens")
    if (same := [source.path for source in config.data.train if source.texts]) and config.distill is None:
        if not config.dropout and not (config.lora and config.lora.dropout):
            raise UserError(f"{same[0]}: nothing tells a text from itself (SimCSE): set dropout, such as --dropout 0.1")
    if wide := [dims for dims in config.matryoshka if dims > cfg.dim]:
        raise UserError(f"matryoshka {wide[0]}: this model's vectors have {cfg.dim} dimensions")


def to_devices(batch, *, mesh: Mesh):
    """Bins to the shards that encode them, the rest to every device."""
    return put(batch, batch_shardings(batch, mesh, lambda x: 1 if x.ndim == 3 else None))


def describe(
    config: TrainConfig, cfg: Architecture, params, planned: Planned, train_data: TrainData, mesh: Mesh
) -> None:
    """Print the resolved config and what follows from it."""
    print(json.dumps(command.to_json(config), indent=2, ensure_ascii=False))
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    shape = planned.shape
    rows = " + ".join(f"{count} × {width}" for width, count in shape.rows)
    print(
        f"\n{trained:,} parameters are trained; {cfg.projection_weights:,} weights in the model's products\n"
        f"{sum(map(len, train_data.stores)):,} records; a batch is {config.batch_size} queries in at most "
        f"{shape.chunks} chunks × {shape.shards} shards × {shape.tokens:,} tokens ({rows})\n"
        f"{planned.schedule}: {planned.bytes / 1e9:.2f} of {planned.limit / 1e9:.2f} GB a device\n"
        f"mesh {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}\n",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(train, TrainConfig, PROG, argv, needs_file=True)


if __name__ == "__main__":
    sys.exit(main())
