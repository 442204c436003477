"""The decoder that becomes an embedder: Mistral, and by configuration Llama 2 and Qwen 3.

- RMSNorm before attention and MLP, no bias anywhere
- rotary positions, halves rotated (the Hugging Face layout of the weights)
- grouped-query attention, optionally inside a sliding window, optionally with RMSNorm on queries and keys (Qwen 3)
- SwiGLU MLP
- no language-model head: the output is the last hidden state

Shapes: T tokens of a bin, D model, N query heads (or tokens that are read), K key-value heads, H head size, F hidden
size of the MLP, P tokens of a shared prefix, L layers.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from e5jax.attention import Before, Rows, attend
from e5jax.layers import NO_DROPOUT, Dropout, Noise, layer_of, scan, stacked
from e5jax.pooling import Kind, Pooling
from e5jax.projection import Projection, projected
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

    def qkv(self, x_TD, sin, cos, noise: Noise) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, turned to their positions."""
        h_TD = self.attn_norm(x_TD)
        q_TNH, k_TKH, v_TKH = projected((self.q, self.k, self.v), h_TD, noise.adapters(h_TD, 0))
        if self.cfg.qk_norm:
            q_TNH, k_TKH = self.q_norm(q_TNH), self.k_norm(k_TKH)
        return rotate(q_TNH, sin, cos), rotate(k_TKH, sin, cos), v_TKH

    def __call__(self, x_TD, sin, cos, segments_T, rows: Rows, before: Before | None, noise: Noise, read_N):
        """-> [T, D]; [N, D] where only some tokens are read: the others matter to attention alone."""
        qkv = self.qkv(x_TD, sin, cos, noise)
        a_TNH = attend(*qkv, segments_T, rows, before, causal=self.cfg.causal, window=self.cfg.window)
        if read_N is not None:
            x_TD, a_TNH, noise = x_TD[read_N], a_TNH[read_N], noise.at(read_N)
        x_TD += noise.hidden(self.o(a_TNH, noise.adapters(a_TNH, 1)), 0)

        h_TD = self.mlp_norm(x_TD)
        gate_TF, up_TF = projected((self.gate, self.up), h_TD, noise.adapters(h_TD, 2))
        f_TF = jax.nn.silu(gate_TF) * up_TF
        x_TD += noise.hidden(self.down(f_TF, noise.adapters(f_TF, 3)), 1)
        return constrain(x_TD, None, None)


class Prefix(nnx.Module):
    """Keys and values, in every layer, of tokens that all texts begin with; only the first `used` are any."""

    def __init__(self, k_LPKH: jax.Array, v_LPKH: jax.Array, used: jax.Array):
        self.k_LPKH, self.v_LPKH, self.used = nnx.Cache(k_LPKH), nnx.Cache(v_LPKH), nnx.Cache(used)

    def before(self, layer: jax.Array | int, positions_T: jax.Array) -> Before:
        """What attention reads of it in one layer; `positions_T` counts from the text's first token."""
        pick = lambda x: jax.lax.dynamic_index_in_dim(x[...], layer, keepdims=False)
        return Before(k_PKH=pick(self.k_LPKH), v_PKH=pick(self.v_LPKH), used=self.used[...], positions_T=positions_T)


class Decoder(nnx.Module):
    """Token ids of one bin -> last hidden states."""

    def __init__(self, cfg: DecoderConfig, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        self.cfg = cfg
        table = 0.02 * jax.random.normal(rngs.params(), (cfg.vocab_size, cfg.dim), jnp.float32)
        self.embed = nnx.Param(table.astype(dtype), axes=("vocab", None))
        self.layers = stacked(lambda rngs: Block(cfg, dtype, rngs=rngs), cfg.layers, rngs=rngs)
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps, dtype)
        self.pooling = Pooling(cfg.pooling, cfg.dim, rngs=rngs)
        self.prefix = nnx.data(None)

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

        See `layers.scan` for `remat`. `dropout_keys_T` has one key a token; None: no dropout. Where a `prefix` hangs on
        the decoder, every text goes on behind it, and positions count from its end.
        """
        if self.prefix is not None:
            positions_T += self.prefix.used[...]
        noise = lambda layer: Noise(rates=dropout, keys_T=dropout_keys_T, layer=layer)
        x_TD = constrain(noise(self.cfg.layers).hidden(self._embedded(tokens_T, dtype), 0), None, None)
        sin, cos = rotary(positions_T, self.cfg.head_dim, self.cfg.rope_theta)

        def apply(block, x_TD, index, read_N):
            before = None if self.prefix is None else self.prefix.before(index, positions_T)
            return block(x_TD, sin, cos, segments_T, rows, before, noise(index), read_N)

        return self.norm(scan(apply, self.layers, self.cfg.layers, x_TD, remat, read_N))

    def read_prefix(self, tokens_P: jax.Array, used: jax.Array, dtype: jnp.dtype) -> Prefix:
        """The first `used` of `tokens_P` as a prefix: a causal decoder needs to read them once for all texts."""
        positions_P = jnp.arange(len(tokens_P))
        sin, cos = rotary(positions_P, self.cfg.head_dim, self.cfg.rope_theta)
        one_row = (jnp.ones_like(positions_P), ((len(tokens_P), 1),), None)

        def layer(x_PD, index):
            block, noise = layer_of(self.layers, index), Noise(rates=NO_DROPOUT, keys_T=None, layer=index)
            _, k_PKH, v_PKH = block.qkv(x_PD, sin, cos, noise)
            return block(x_PD, sin, cos, *one_row, noise, None), (k_PKH, v_PKH)

        keys_values = jax.lax.scan(layer, self._embedded(tokens_P, dtype), jnp.arange(self.cfg.layers))[1]
        return Prefix(*keys_values, used)

    def _embedded(self, tokens_T, dtype):
        return gathered(self.embed[...], self.embed.axes)[tokens_T].astype(dtype)
