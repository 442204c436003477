"""What a run's config says of its teacher -> what a step needs of it."""

import dataclasses
from pathlib import Path

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from e5jax import models, teacher
from e5jax.batch import TrainData
from e5jax.config import DataConfig, DistillConfig, TrainConfig
from e5jax.errors import UserError
from e5jax.formats import Tokenizer
from e5jax.objectives import Distill


def learn_from(
    config: TrainConfig, train_data: TrainData, tokenizer: Tokenizer, dim: int, mesh: Mesh
) -> tuple[TrainData, Distill, nnx.State | None, str]:
    """-> (the data, with the teacher's vectors, what is learnt, weights of a live teacher, the teacher's digest).

    Raises UserError where the teacher cannot be opened, or cannot teach this student live.
    """
    settings, graphdef, weights = config.distill, None, None
    if settings.live:
        opened = models.open_model(settings.teacher, revision=None, mesh=mesh, dtype=None)
        check_live(settings, opened, tokenizer, dim, config.data.max_length)
        graphdef, weights = nnx.split(opened.model)
        digest, projection_ED = opened.digest, np.eye(opened.model.cfg.dim, dim, dtype=np.float32)
    else:
        opened = teacher.open_teacher(settings.teacher)
        vectors = vectors_of(opened, settings.teacher, train_data, config.data)
        train_data = dataclasses.replace(train_data, teachers=vectors)
        digest, projection_ED = opened.digest, teacher.projection(max(vectors, key=len), dim)
    distill = Distill(
        contrastive=settings.contrastive,
        match=settings.match,
        kl=settings.kl,
        margin_mse=settings.margin_mse,
        temperature=settings.temperature,
        projection_ED=projection_ED,
        graphdef=graphdef,
    )
    return train_data, distill, weights, digest


def vectors_of(opened: teacher.Teacher, name: str, train_data: TrainData, data: DataConfig) -> tuple[np.ndarray, ...]:
    """The teacher's vectors of each store's texts, under its own prompts."""
    settings = (data.max_negatives, data.on_bad_record, Path(data.cache))
    return tuple(
        teacher.prepare(opened, name, store.source, store, opened.prompts, *settings) for store in train_data.stores
    )


def check_live(
    settings: DistillConfig, opened: models.OpenedModel, tokenizer: Tokenizer, dim: int, max_length: int
) -> None:
    """UserError where a teacher cannot read the student's tokens, or has no vector of the student's width to match."""
    if opened.tokenizer.digest != tokenizer.digest:
        raise UserError(
            f"distill.live: {settings.teacher} reads other tokens than the student. Leave live off: its vectors are "
            "then computed once, with its own tokenizer"
        )
    if dim < opened.model.cfg.dim and settings.match:
        raise UserError(
            f"distill.match: the student's vectors have {dim} dimensions, those of {settings.teacher} "
            f"{opened.model.cfg.dim}: leave live off, or set match to 0"
        )
    if max_length > (opened.model.cfg.longest or max_length):
        raise UserError(
            f"distill.live: {settings.teacher} reads at most {opened.model.cfg.longest} tokens, data.max_length is "
            f"{max_length}"
        )
