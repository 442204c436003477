"""Decoder or encoder: the one place that tells them apart."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from e5jax.bert import FIRST_POSITION, Bert, BertConfig
from e5jax.decoder import Decoder, DecoderConfig


Architecture = DecoderConfig | BertConfig
Model = Decoder | Bert


def build(cfg: Architecture, dtype: jnp.dtype, *, rngs: nnx.Rngs) -> Model:
    """A model with random weights."""
    return (Bert if isinstance(cfg, BertConfig) else Decoder)(cfg, dtype, rngs=rngs)


def abstract(cfg: Architecture, dtype: jnp.dtype):
    """(graphdef, state) of a model without weights."""
    return jax.eval_shape(lambda: nnx.split(build(cfg, dtype, rngs=nnx.Rngs(0))))


def from_json(fields: Mapping) -> Architecture:
    """What `dataclasses.asdict` made of one."""
    return (BertConfig if fields["family"] in FIRST_POSITION else DecoderConfig)(**fields)


def shares_prefixes(cfg: Architecture) -> bool:
    """Whether what all texts begin with can be read once for all: nothing behind it changes what it is."""
    return isinstance(cfg, DecoderConfig) and cfg.causal and cfg.pooling == "last"
