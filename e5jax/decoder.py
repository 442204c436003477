"""The decoder that becomes an embedder: Mistral, and by configuration Llama 2 and Qwen 3.

- RMSNorm before attention and MLP, no bias anywhere
- rotary positions, halves rotated (the Hugging Face layout of the weights)
- grouped-query attention, optionally inside a sliding window, optionally with RMSNorm on queries and keys (Qwen 3)
- SwiGLU MLP
- no language-model head: the output is the last hidden state

Shapes: T tokens of a bin, D model, N query heads, K key-value heads, H head size, F hidden size of the MLP.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from e5jax.attention import Rows, attend
from e5jax.layers import Dropout, droppers, scan, stacked
from e5jax.pooling import Kind, Pooling
from e5jax.projection import KEPT, Projection
from e5jax.sharding import constrain, gathered


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder."""

    vocab_size: int
    dim: int
    """Width of the residual stream (hidden_size)."""
    hidden: int
    """Width inside the MLP (intermediate_size)."""
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    """Sliding window: key j is seen from i when i - window < j <= i. None: full causal attention."""
    rope_theta: float
    norm_eps: float
    qk_norm: bool
    """RMSNorm on each head's query and key (Qwen 3)."""
    family: Literal["mistral", "llama", "qwen3"]
    """How Hugging Face files of this model call it (model_type)."""
    causal: bool = True
    """A token sees what stands before it; else both sides (LLM2Vec, arXiv 2404.05961)."""
    pooling: Kind = "last"

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: rotary positions turn pairs")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window {self.window} must be at least 1, or None")

    @property
    def longest(self) -> None:
        """Rotary positions have no end."""
        return None

    @property
    def projections(self) -> tuple[str, ...]:
        """Names of a layer's projections."""
        return PROJECTIONS

    @property
    def projection_weights(self) -> int:
        """Weights that every token is multiplied with: all projections, no embeddings."""
        attention = self.dim * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.dim * self.hidden)


MISTRAL_7B_V01 = DecoderConfig(
    family="mistral",
    vocab_size=32_000,
    dim=4096,
    hidden=14_336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    window=4096,
    rope_theta=1e4,
    norm_eps=1e-5,
    qk_norm=False,
)
MISTRAL_7B_V02 = dataclasses.replace(MISTRAL_7B_V01, window=None, rope_theta=1e6)
MISTRAL_7B_V03 = dataclasses.replace(MISTRAL_7B_V02, vocab_size=32_768)
LLAMA_2_7B = dataclasses.replace(MISTRAL_7B_V01, family="llama", hidden=11_008, kv_heads=32, window=None)
QWEN3_EMBEDDING_0_6B = DecoderConfig(
    family="qwen3",
    vocab_size=151_669,
    dim=1024,
    hidden=3072,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    window=None,
    rope_theta=1e6,
    norm_eps=1e-6,
    qk_norm=True,
)


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


class RMSNorm(nnx.Module):
    """x / rms(x) · scale over the last axis, statistics in f32."""

    def __init__(self, dim: int, eps: float, dtype: jnp.dtype):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(dim, dtype), axes=(None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


def rotary(positions_T: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of the rotary angles -> two [T, 1, H/2] arrays in f32."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions_T.astype(jnp.float32)[:, None, None] * frequencies
    return jnp.sin(angles), jnp.cos(angles)


def rotate(x_TNH: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Turn the pair (h, h + H/2) of every head by the angle of its position."""
    a, b = jnp.split(x_TNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_TNH.dtype)


class Block(nnx.Module):
    """One layer: attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, cfg: DecoderConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.cfg = cfg
        D, F = ("embed", cfg.dim), ("mlp", cfg.hidden)
        N, K, H = ("heads", cfg.heads), ("kv_heads", cfg.kv_heads), ("head_dim", cfg.head_dim)

        def project(eq, *dims, fan_in):
            return Projection(eq, *dims, fan_in=fan_in, bias=False, dtype=dtype, rngs=rngs)

        self.attn_norm = RMSNorm(cfg.dim, cfg.norm_eps, dtype)
        self.q = project("TD,DNH->TNH", D, N, H, fan_in=cfg.dim)
        self.k = project("TD,DKH->TKH", D, K, H, fan_in=cfg.dim)
        self.v = project("TD,DKH->TKH", D, K, H, fan_in=cfg.dim)
        self.o = project("TNH,NHD->TD", N, H, D, fan_in=cfg.heads * cfg.head_dim)
        if cfg.qk_norm:
            self.q_norm = RMSNorm(cfg.head_dim, cfg.norm_eps, dtype)
            self.k_norm = RMSNorm(cfg.head_dim, cfg.norm_eps, dtype)
        self.mlp_norm = RMSNorm(cfg.dim, cfg.norm_eps, dtype)
        self.gate = project("TD,DF->TF", D, F, fan_in=cfg.dim)
        self.up = project("TD,DF->TF", D, F, fan_in=cfg.dim)
        self.down = project("TF,FD->TD", F, D, fan_in=cfg.hidden)

    def __call__(self, x_TD, sin, cos, segments_T, rows: Rows, drop, hide) -> jax.Array:
        """`drop(x, i)` is what the adapters see of the layer's i-th input, `hide(x, i)` the i-th sublayer's dropout."""
        h_TD = self.attn_norm(x_TD)
        seen = drop(h_TD, 0)
        q_TNH, k_TKH, v_TKH = self.q(h_TD, seen), self.k(h_TD, seen), self.v(h_TD, seen)
        if self.cfg.qk_norm:
            q_TNH, k_TKH = self.q_norm(q_TNH), self.k_norm(k_TKH)
        q_TNH, k_TKH = rotate(q_TNH, sin, cos), rotate(k_TKH, sin, cos)
        a_TNH = attend(q_TNH, k_TKH, v_TKH, segments_T, rows, causal=self.cfg.causal, window=self.cfg.window)
        a_TNH = checkpoint_name(a_TNH, KEPT)
        x_TD += hide(self.o(a_TNH, drop(a_TNH, 1)), 0)

        h_TD = self.mlp_norm(x_TD)
        seen = drop(h_TD, 2)
        f_TF = jax.nn.silu(self.gate(h_TD, seen)) * self.up(h_TD, seen)
        x_TD += hide(self.down(f_TF, drop(f_TF, 3)), 1)
        return constrain(x_TD, None, None)


class Decoder(nnx.Module):
    """Token ids of one bin -> last hidden states."""

    def __init__(self, cfg: DecoderConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.cfg = cfg
        table = 0.02 * jax.random.normal(rngs.params(), (cfg.vocab_size, cfg.dim), jnp.float32)
        self.embed = nnx.Param(table.astype(dtype), axes=("vocab", None))
        self.layers = stacked(lambda rngs: Block(cfg, dtype, rngs=rngs), cfg.layers, rngs=rngs)
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps, dtype)
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
        x_TD = gathered(self.embed[...], self.embed.axes)[tokens_T].astype(dtype)
        _, hide = droppers(dropout, dropout_keys_T, self.cfg.layers)
        x_TD = constrain(hide(x_TD, 0), None, None)
        sin, cos = rotary(positions_T, self.cfg.head_dim, self.cfg.rope_theta)

        def apply(block, x_TD, index):
            return block(x_TD, sin, cos, segments_T, rows, *droppers(dropout, dropout_keys_T, index))

        return self.norm(scan(apply, self.layers, self.cfg.layers, x_TD, remat))
