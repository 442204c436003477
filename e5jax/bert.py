"""Encoders that become embedders: BERT (MiniLM, BGE, E5) and XLM-R (multilingual E5).

- word, position and token-type embeddings, summed and normalised
- attention in both directions, a bias on every projection
- GELU MLP, LayerNorm after each residual sum
- no pooler and no language-model head: the output is the last hidden state

Shapes: T tokens of a bin, D model, N heads, H head size, F hidden size of the MLP.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from e5jax.attention import Rows, attend
from e5jax.layers import Dropout, LayerNorm, droppers, scan, stacked
from e5jax.pooling import Kind, Pooling
from e5jax.projection import KEPT, Projection
from e5jax.sharding import constrain, gathered


FIRST_POSITION = {"bert": 0, "xlm-roberta": 2}  # XLM-R counts positions from its padding id, 1, plus one
Family = Literal["bert", "xlm-roberta"]
PROJECTIONS = ("q", "k", "v", "o", "up", "down")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The shape of an encoder."""

    family: Family
    """How Hugging Face files of this model call it (model_type)."""
    vocab_size: int
    dim: int
    """Width of the residual stream (hidden_size)."""
    hidden: int
    """Width inside the MLP (intermediate_size)."""
    layers: int
    heads: int
    positions: int
    """Rows of the position table; XLM-R uses them from the third on."""
    token_types: int
    """Rows of the token-type table; texts are all of type 0."""
    norm_eps: float
    pooling: Kind = "mean"

    def __post_init__(self):
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")

    @property
    def longest(self) -> int:
        """Tokens of the longest text there are positions for."""
        return self.positions - FIRST_POSITION[self.family]

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of a layer's projections."""
        return PROJECTIONS

    @property
    def projection_weights(self) -> int:
        """Weights that every token is multiplied with: all projections, no embeddings."""
        return self.layers * self.dim * (4 * self.dim + 2 * self.hidden)


class Block(nnx.Module):
    """One layer: attention and MLP, each added to its input, then normalised."""

    def __init__(self, cfg: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        D, F = ("embed", cfg.dim), ("mlp", cfg.hidden)
        N, H = ("heads", cfg.heads), ("head_dim", cfg.dim // cfg.heads)

        def project(eq, *dims, fan_in):
            return Projection(eq, *dims, fan_in=fan_in, bias=True, dtype=dtype, rngs=rngs)

        self.q = project("TD,DNH->TNH", D, N, H, fan_in=cfg.dim)
        self.k = project("TD,DNH->TNH", D, N, H, fan_in=cfg.dim)
        self.v = project("TD,DNH->TNH", D, N, H, fan_in=cfg.dim)
        self.o = project("TNH,NHD->TD", N, H, D, fan_in=cfg.dim)
        self.attn_norm = LayerNorm(cfg.dim, cfg.norm_eps, dtype)
        self.up = project("TD,DF->TF", D, F, fan_in=cfg.dim)
        self.down = project("TF,FD->TD", F, D, fan_in=cfg.hidden)
        self.mlp_norm = LayerNorm(cfg.dim, cfg.norm_eps, dtype)

    def __call__(self, x_TD, segments_T, rows: Rows, drop, hide) -> jax.Array:
        """`drop(x, i)` is what the adapters see of the layer's i-th input, `hide(x, i)` the i-th sublayer's dropout."""
        seen = drop(x_TD, 0)
        q_TNH, k_TNH, v_TNH = self.q(x_TD, seen), self.k(x_TD, seen), self.v(x_TD, seen)
        a_TNH = attend(q_TNH, k_TNH, v_TNH, segments_T, rows, causal=False, window=None)
        a_TNH = checkpoint_name(a_TNH, KEPT)
        x_TD = self.attn_norm(x_TD + hide(self.o(a_TNH, drop(a_TNH, 1)), 0))

        f_TF = jax.nn.gelu(self.up(x_TD, drop(x_TD, 2)), approximate=False)
        x_TD = self.mlp_norm(x_TD + hide(self.down(f_TF, drop(f_TF, 3)), 1))
        return constrain(x_TD, None, None)


class Bert(nnx.Module):
    """Token ids of one bin -> last hidden states."""

    def __init__(self, cfg: BertConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.cfg = cfg

        def table(rows, axis):
            drawn = 0.02 * jax.random.normal(rngs.params(), (rows, cfg.dim), jnp.float32)
            return nnx.Param(drawn.astype(dtype), axes=(axis, None))

        self.embed = table(cfg.vocab_size, "vocab")
        self.embed_position = table(cfg.positions, None)
        self.embed_type = table(cfg.token_types, None)
        self.norm = LayerNorm(cfg.dim, cfg.norm_eps, dtype)
        self.layers = stacked(lambda rngs: Block(cfg, dtype, rngs=rngs), cfg.layers, rngs=rngs)
        self.pooling = Pooling(cfg.pooling, cfg.dim, rngs=rngs)

    def __call__(
        self,
        tokens_T: jax.Array,
        positions_T: jax.Array,
        segments_T: jax.Array,
        rows: Rows,
        *,
        dtype: jnp.dtype,
        remat: bool,
        dropout: Dropout,
        dropout_keys_T: jax.Array | None,
    ) -> jax.Array:
        """-> [T, D] in `dtype`, the dtype of all products. See `layers.scan` for `remat`.

        `dropout_keys_T` has one key a token; None: no dropout.
        """
        x_TD = gathered(self.embed[...], self.embed.axes)[tokens_T]
        x_TD += self.embed_position[...][positions_T + FIRST_POSITION[self.cfg.family]] + self.embed_type[0]
        _, hide = droppers(dropout, dropout_keys_T, self.cfg.layers)
        x_TD = constrain(hide(self.norm(x_TD.astype(dtype)), 0), None, None)

        def apply(block, x_TD, index):
            return block(x_TD, segments_T, rows, *droppers(dropout, dropout_keys_T, index))

        return scan(apply, self.layers, self.cfg.layers, x_TD, remat)
