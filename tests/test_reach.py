"""Another window and base at inference: NTK-aware scaling is what its authors' formula says."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from e5jax.bert import BertConfig
from e5jax.encoder import Encoder
from e5jax.errors import UserError
from e5jax.formats import PAPER
from e5jax.reach import ntk_base, reaching
from tests import tiny


def encoder(model):
    options = dict(tokenizer=None, max_length=64, dtype=jnp.float32, prompts=PAPER, digest="", mesh=None)
    return Encoder(model=model, **options)


def vectors(found, texts):
    return found.encode_ids(texts, lambda which: None)


@pytest.fixture(scope="module")
def decoder():
    return encoder(tiny.decoder(window=None))


@pytest.mark.parametrize(("theta", "scale", "dim"), [(1e4, 8.0, 128), (1e6, 4.0, 64), (77.0, 2.0, 10)])
def test_the_slowest_component_turns_as_far_over_a_longer_text_and_the_fastest_as_far_as_before(theta, scale, dim):
    turns = lambda base: base ** (-np.arange(0, dim, 2) / dim)
    before, after = turns(theta), turns(ntk_base(theta, scale, dim))
    np.testing.assert_allclose(after[-1] * scale, before[-1], rtol=1e-9)
    assert after[0] == before[0] == 1 and (after[1:] < before[1:]).all()


def test_a_scale_is_the_base_that_it_stands_for(decoder):
    texts, cfg = tiny.texts((20, 33)), decoder.model.cfg
    scaled = vectors(reaching(decoder, None, None, 4.0), texts)
    based = vectors(reaching(decoder, None, ntk_base(cfg.rope_theta, 4.0, cfg.head_dim), None), texts)
    np.testing.assert_array_equal(scaled, based)
    assert np.abs(scaled - vectors(decoder, texts)).max() > 1e-3


def test_scale_and_base_together_scale_that_base(decoder):
    dim = decoder.model.cfg.head_dim
    both = reaching(decoder, None, 500.0, 2.0).model.cfg.rope_theta
    assert both == ntk_base(500.0, 2.0, dim)


def test_nothing_asked_for_changes_nothing_and_a_window_of_zero_is_none(decoder):
    assert reaching(decoder, None, None, None) is decoder
    assert reaching(decoder, 7, None, None).model.cfg.window == 7
    assert reaching(reaching(decoder, 7, None, None), 0, None, None).model.cfg.window is None


def test_a_model_without_rotary_angles_is_refused():
    cfg = object.__new__(BertConfig)
    object.__setattr__(cfg, "family", "bert")
    bert = dataclasses.replace(encoder(tiny.decoder()), model=type("M", (), {"cfg": cfg})())
    with pytest.raises(UserError, match="are for decoders: a bert has none"):
        reaching(bert, 4, None, None)
