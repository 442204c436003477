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

from e5jax.attention import Rows, attend
from e5jax.layers import Dropout, LayerNorm, Noise, gelu, scan, stacked
from e5jax.pooling import Kind, Pooling
from e5jax.projection import Projection, projected
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

    def __call__(self, x_TD, segments_T, rows: Rows, noise: Noise, read_N) -> jax.Array:
        """-> [T, D]; [N, D] where only some tokens are read: the others matter to attention alone."""
        q_TNH, k_TNH, v_TNH = projected((self.q, self.k, self.v), x_TD, noise.adapters(x_TD, 0))
        a_TNH = attend(q_TNH, k_TNH, v_TNH, segments_T, rows, None, causal=False, window=None)
        if read_N is not None:
            x_TD, a_TNH, noise = x_TD[read_N], a_TNH[read_N], noise.at(read_N)
        x_TD = self.attn_norm(x_TD + noise.hidden(self.o(a_TNH, noise.adapters(a_TNH, 1)), 0))

        f_TF = gelu(self.up(x_TD, noise.adapters(x_TD, 2)))
        x_TD = self.mlp_norm(x_TD + noise.hidden(self.down(f_TF, noise.adapters(f_TF, 3)), 1))
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
        read_N: jax.Array | None,
        dtype: jnp.dtype,
        remat: bool,
        dropout: Dropout,
        dropout_keys_T: jax.Array | None,
    ) -> jax.Array:
        """-> [T, D] in `dtype`, the dtype of all products; [N, D] of the tokens `read_N` where it is not None.

        See `layers.scan` for `remat`. `dropout_keys_T` has one key a token; None: no dropout.
        """
        x_TD = gathered(self.embed[...], self.embed.axes)[tokens_T]
        x_TD += self.embed_position[...][positions_T + FIRST_POSITION[self.cfg.family]] + self.embed_type[0]
        noise = lambda layer: Noise(rates=dropout, keys_T=dropout_keys_T, layer=layer)
        x_TD = constrain(noise(self.cfg.layers).hidden(self.norm(x_TD.astype(dtype)), 0), None, None)

        def apply(block, x_TD, index, read_N):
            return block(x_TD, segments_T, rows, noise(index), read_N)

        return scan(apply, self.layers, self.cfg.layers, x_TD, remat, read_N)
