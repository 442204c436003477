"""A student learns what its teacher knows, live or from stored vectors, and Matryoshka losses are means over widths."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e5jax import objectives
from e5jax import train as training
from e5jax.batch import Batch
from e5jax.config import DataConfig, DistillConfig, OptimConfig, PackingConfig, Pretrained, TrainConfig
from e5jax.contrast import Contrast, info_nce
from e5jax.errors import UserError
from e5jax.logbook import read_rows
from e5jax.objectives import Distill
from e5jax.records import Source
from tests import tiny_bert
from tests.sample import TRAIN


pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_bert.folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A teacher of other width and tokens than the student."""
    return tiny_bert.folder(tmp_path_factory.mktemp("wide"), dataclasses.replace(tiny_bert.XLM_R, dim=36), seed=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def config(workdir, cache, base, distill, **changes) -> TrainConfig:
    settings = TrainConfig(
        workdir=str(workdir),
        steps=8,
        batch_size=8,
        model=Pretrained(base=str(base), dtype="float32", keep_layers=(0, 2)),
        lora=None,
        distill=distill,
        data=DataConfig(
            train=(Source(path=short(cache)),), query_prompt="", max_length=64, max_negatives=1, cache=str(cache)
        ),
        packing=PackingConfig(widths=(64,), chunks=1),
        optim=OptimConfig(peak_lr=3e-3, warmup_steps=2),
        temperature=0.1,
    )
    return dataclasses.replace(settings, **changes)


def short(folder) -> str:
    """Records that nobody has to cut: a live teacher reads what the student reads, the stored one its own length."""
    path = folder / "short.jsonl"
    if not path.exists():
        records = [json.loads(line) for line in open(TRAIN, encoding="utf-8")][:40]
        cut = [
            {k: [t[:20] for t in v] if k == "negatives" else v[:20] for k, v in record.items()} for record in records
        ]
        path.write_text("".join(json.dumps(record) + "\n" for record in cut))
    return str(path)


def rows(workdir):
    return [row for row in read_rows(workdir / "metrics.jsonl") if "loss" in row]


def test_a_live_teacher_and_its_stored_vectors_teach_the_same(teacher, cache, tmp_path):
    distill = DistillConfig(teacher=str(teacher), match=1.0, kl=0.5, margin_mse=0.25, contrastive=0.125)
    for live in (False, True):
        training.train(config(tmp_path / f"{live}", cache, teacher, dataclasses.replace(distill, live=live)))
    stored, live = (rows(tmp_path / f"{live}") for live in (False, True))
    for name in ("loss", "match", "kl", "margin_mse", "contrastive"):
        assert live[0][name] == pytest.approx(stored[0][name], abs=2e-3), name
    weighted = sum(getattr(distill, name) * stored[0][name] for name in ("match", "kl", "margin_mse", "contrastive"))
    assert stored[0]["loss"] == pytest.approx(weighted, rel=1e-5)
    assert stored[-1]["match"] < 0.8 * stored[0]["match"]


def test_a_teacher_of_another_width_teaches_through_a_projection(teacher, wide, cache, tmp_path):
    training.train(config(tmp_path / "run", cache, teacher, DistillConfig(teacher=str(wide), match=1.0)))
    found = rows(tmp_path / "run")
    assert found[-1]["match"] < found[0]["match"] and "kl" not in found[0]


@pytest.mark.parametrize(
    ("changes", "said"), [({}, "reads other tokens than the student"), ({"match": 0.0, "kl": 1.0}, "other tokens")]
)
def test_a_live_teacher_that_reads_other_tokens_is_refused(teacher, wide, cache, tmp_path, changes, said):
    distill = dataclasses.replace(DistillConfig(teacher=str(wide), live=True), **changes)
    with pytest.raises(UserError, match=said):
        training.train(config(tmp_path / "run", cache, teacher, distill))


def test_a_run_with_another_teacher_is_another_run(teacher, wide, cache, tmp_path):
    training.train(config(tmp_path / "run", cache, teacher, DistillConfig(teacher=str(teacher)), steps=1))
    other = config(tmp_path / "run", cache, teacher, DistillConfig(teacher=str(wide)), steps=1)
    with pytest.raises(UserError, match=r"distill\.teacher"):
        training.train(other)


def test_texts_alone_need_dropout_or_a_teacher(teacher, cache, tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"text number {i}\n" for i in range(20)))
    data = DataConfig(train=(Source(path=str(tmp_path / "texts.txt"), texts=True),), max_length=64, cache=str(cache))
    alone = config(tmp_path / "run", cache, teacher, None, data=data, steps=1)
    with pytest.raises(UserError, match="nothing tells a text from itself"):
        training.train(alone)
    training.train(dataclasses.replace(alone, dropout=0.1))
    assert rows(tmp_path / "run")[0]["loss"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(match=0.0), "a loss must weigh more than 0"),
        (dict(kl=-1.0), "none less"),
        (dict(temperature=0.0), "distill.temperature must be positive"),
    ],
)
def test_weights_that_teach_nothing_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        DistillConfig(teacher="x", **changes)


def vectors(seed, rows_, dims):
    x = np.random.default_rng(seed).normal(size=(rows_, dims)).astype(np.float32)
    return jnp.array(x / np.linalg.norm(x, axis=1, keepdims=True))


BATCH = Batch(
    bins=None,
    query_Q=None,
    passage_P=None,
    positive_Q=jnp.array([0, 2, 1]),
    negative_QK=jnp.array([[3], [0], [0]]),
    has_QK=jnp.array([[True], [False], [True]]),
    valid_P=jnp.array([True, True, True, True, False]),
    same_Q=jnp.arange(3),
    own_only_Q=None,
    teacher_QE=None,
    teacher_PE=None,
)


def test_matryoshka_is_the_mean_over_whole_vectors_and_their_beginnings():
    q, p = vectors(0, 3, 8), vectors(1, 5, 8)
    loss, metrics = objectives.total(q, p, None, None, BATCH, 0.1, Contrast(), (4, 2), None)
    cut = lambda x, dims: x[:, :dims] / np.linalg.norm(x[:, :dims], axis=1, keepdims=True)
    each = [info_nce(cut(q, d), cut(p, d), BATCH, 0.1, Contrast())[0] for d in (8, 4, 2)]
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)
    assert metrics["accuracy"] == info_nce(q, p, BATCH, 0.1, Contrast())[1]


def test_a_teacher_s_vectors_get_no_gradient_and_their_lengths_do_not_matter():
    distill = Distill(
        contrastive=0.0,
        match=1.0,
        kl=1.0,
        margin_mse=1.0,
        temperature=0.2,
        projection_ED=np.eye(6, 8, dtype=np.float32),
        graphdef=None,
    )
    q, p, tq, tp = vectors(0, 3, 8), vectors(1, 5, 8), vectors(2, 3, 6), vectors(3, 5, 6)

    def total(q, tq):
        return objectives.total(q, p, tq, tp, BATCH, 0.1, Contrast(), (4,), distill)[0]

    of_q, of_teacher = jax.grad(total, (0, 1))(q, tq)
    assert np.abs(of_q).max() > 1e-3 and not np.abs(of_teacher).max()
    np.testing.assert_allclose(total(q, tq), total(q, 3 * tq), rtol=1e-5)
