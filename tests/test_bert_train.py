"""Encoders are trained as decoders are: from random weights or a pretrained base, stopped and gone on with."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

import e5jax
from e5jax import architecture
from e5jax import train as training
from e5jax.bert import PROJECTIONS, Bert
from e5jax.config import (
    DataConfig,
    ExportConfig,
    FromScratch,
    LoraConfig,
    OptimConfig,
    PackingConfig,
    Pretrained,
    TrainConfig,
)
from e5jax.errors import UserError
from e5jax.export import export
from e5jax.logbook import read_rows
from e5jax.records import Source
from e5jax.sharding import make_mesh
from e5jax.step import place_model
from tests import tiny_bert
from tests.sample import TRAIN
from tests.tiny_bert import BERT


pytestmark = pytest.mark.usefixtures("quickly_compiled")


RANDOM = dataclasses.replace(BERT, layers=2, positions=48)


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """Compiling takes half as long, running these sizes no longer."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def config(workdir, cache, **changes) -> TrainConfig:
    settings = TrainConfig(
        workdir=str(workdir),
        steps=3,
        batch_size=8,
        model=FromScratch(architecture=RANDOM),
        lora=None,
        data=DataConfig(train=(Source(path=TRAIN, rows=":60"),), max_length=48, cache=str(cache)),
        packing=PackingConfig(widths=(48,), chunks=1),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=1),
        dropout=0.1,
        checkpoint_every=1,
    )
    return dataclasses.replace(settings, **changes)


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_rows(Path(workdir) / "metrics.jsonl") if "loss" in row}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """Three steps from random weights, with dropout."""
    workdir = tmp_path_factory.mktemp("bert") / "run"
    training.train(config(workdir, cache))
    return workdir


def test_a_run_from_random_weights_is_an_encoder(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert architecture.from_json(stored["run"]["architecture"]) == RANDOM
    assert all(np.isfinite(loss) for loss in losses(finished).values()) and len(losses(finished)) == 3
    encoder = e5jax.Encoder.load(str(finished))
    assert isinstance(encoder.model, Bert) and encoder.max_length == 48
    vectors = encoder.encode(["one", "two words", ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-2


def test_a_run_that_was_stopped_goes_on_bit_for_bit(finished, tmp_path, cache, monkeypatch):
    def stop_after_one(self, row):
        if row["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("e5jax.loop.Progress.step", stop_after_one)
        with pytest.raises(SystemExit):
            training.train(config(tmp_path / "run", cache))
    assert max(losses(tmp_path / "run")) < 3
    training.train(config(tmp_path / "run", cache))
    assert losses(tmp_path / "run") == losses(finished)
    ours, theirs = (e5jax.Encoder.load(str(w)).encode(["one", "two"]) for w in (tmp_path / "run", finished))
    np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_bert.folder(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    ("pooling", "settings"), [("cls", None), ("latent", LoraConfig(rank=2, alpha=4.0))], ids=["cls-all", "latent-lora"]
)
def test_a_run_on_some_layers_of_a_pretrained_encoder_has_these_and_its_own_pooling(
    base, cache, tmp_path, pooling, settings, monkeypatch
):
    monkeypatch.setattr("e5jax.pooling.LATENTS", 7)
    source = Pretrained(base=str(base), dtype="float32", keep_layers=(0, 2), pooling=pooling)
    training.train(config(tmp_path / "run", cache, model=source, lora=settings, steps=1, mesh=(1, 8, 1)))
    model = e5jax.Encoder.load(str(tmp_path / "run")).model
    assert (model.cfg.pooling, model.cfg.layers) == (pooling, 2)
    assert settings is None or np.abs(model.pooling.latent.o[...]).max() > 0  # it was trained
    before, after = tiny_bert.encoder().layers.v.w[...][np.array([0, 2])], model.layers.v.w[...]
    assert 0 < np.abs(after - before).max() < 0.1
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    if settings is None:
        return
    assert {*stored["lora"]["targets"]} == {*PROJECTIONS}
    for form in ("adapter", "merged"):
        with pytest.raises(UserError, match=r"latent pooling has no place in .* files: only e5jax reads such"):
            export(ExportConfig(checkpoint=str(tmp_path / "run"), output=str(tmp_path / form), form=form))

    again = dataclasses.replace(source, base=str(tmp_path / "run"), keep_layers=None, pooling=None)
    mesh = make_mesh((8, 1, 1))
    for lora_settings in (settings, None):  # latents that were trained are where the next run starts
        following = config(tmp_path / "next", cache, model=again, lora=lora_settings)
        opened, cfg, *_ = training.open_base(following, mesh)
        params = place_model(training.with_targets(following, cfg), cfg, opened, mesh).params
        np.testing.assert_array_equal(params["pooling"]["latent"]["o"][...], model.pooling.latent.o[...])


def test_texts_longer_than_the_positions_are_refused_before_training(base, cache, tmp_path):
    data = DataConfig(train=(Source(path=TRAIN, rows=":60"),), max_length=600, cache=str(cache))
    wrong = config(
        tmp_path / "run", cache, model=Pretrained(base=str(base)), data=data, packing=PackingConfig(widths=(600,))
    )
    with pytest.raises(UserError, match=r"data\.max_length 600: this model takes at most 512 tokens"):
        training.train(wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model=dict(keep_layers=(0, 3))), r"model\.keep_layers \[0, 3\]: the model has the layers 0 to 2"),
        (dict(model=dict(keep_layers=())), r"model\.keep_layers \[\]"),
        (dict(model=dict(causal=False)), r"model\.causal: a bert has no such choice"),
        (
            dict(lora=LoraConfig(targets=("q", "gate"))),
            r"\['gate'\] name no projection; choose from q, k, v, o, up, down",
        ),
        (dict(matryoshka=(8, 32)), "matryoshka 32: this model's vectors have 24 dimensions"),
    ],
    ids=str,
)
def test_what_an_encoder_does_not_have_is_refused_by_name(base, cache, tmp_path, changes, said):
    source = Pretrained(base=str(base), **changes.get("model", {}))
    with pytest.raises(UserError, match=said):
        training.train(config(tmp_path / "run", cache, **changes | {"model": source}))


def test_an_xlm_r_from_random_weights_needs_a_tokenizer_with_its_padding(cache, tmp_path):
    source = FromScratch(architecture=dataclasses.replace(tiny_bert.XLM_R, positions=50))
    with pytest.raises(UserError, match="whose padding has the id 1"):
        training.train(config(tmp_path / "run", cache, model=source))
