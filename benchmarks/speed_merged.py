"""The other way to train adapters in JAX, written for C10: merged weights, dW, padding, GradCache by lax.map.

As tevax (Tevatron's JAX trainer) does it: every step forms W + s A B for each projection and differentiates through it,
so that the gradient of every whole weight is computed before the adapters' follow from it; queries and passages are
padded to a maximum; chunks of texts are encoded by `lax.map` of a checkpointed encoder. Plain jax.numpy; no layer of
e5jax. Inside a chunk it keeps its activations, which is its fastest way.

Shapes: L layers, B texts of a chunk, T padded tokens of a text, D model, N query heads, K key-value heads, H head size,
F hidden size of the MLP, r rank.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.speed_data import Triples
from e5jax.decoder import PROJECTIONS, DecoderConfig


def adapters_of(params: nnx.State) -> dict:
    """{projection: (A, B)}, layers stacked, from the adapters of our model."""
    layers = nnx.to_pure_dict(params)["layers"]
    return {name: (layers[name]["adapter"]["a"], layers[name]["adapter"]["b"]) for name in PROJECTIONS}


def base_of(frozen: nnx.State) -> dict:
    """The frozen weights of our model by name, layers stacked."""
    weights = nnx.to_pure_dict(frozen)
    layers = weights["layers"]
    norms = {name: layers[name]["scale"] for name in ("attn_norm", "mlp_norm")}
    return {
        "embed": weights["embed"],
        "norm": weights["norm"]["scale"],
        "layers": norms | {name: layers[name]["w"] for name in PROJECTIONS},
    }


def pad(triples: Triples, pads: Sequence[int], texts: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(tokens [C, B, T], index of each text's last token [C, B])] of the queries and of the passages.

    `texts` a chunk at most. Raises ValueError where they make no whole chunks, or a text is longer than its `pads`.
    """
    columns = []
    for column, width in zip((triples.queries, triples.positives + triples.negatives), pads, strict=True):
        size = min(texts, len(column))
        tokens = np.zeros((len(column), width), np.int32)
        for row, text in zip(tokens, column, strict=True):
            row[: len(text)] = text
        last = np.array([len(text) - 1 for text in column], np.int32)
        columns.append((tokens.reshape(-1, size, width), last.reshape(-1, size)))
    return columns


def optimizer(rate: float, *, b1: float, b2: float, weight_decay: float, clip_norm: float):
    """AdamW behind clipping by the global norm."""
    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay))


def make_step(cfg: DecoderConfig, optimizer, scale: float, temperature: float, dtype: jnp.dtype) -> Callable:
    """-> step((adapters, optimizer's state), base, padded columns) -> (the same pair, {loss, grad_norm})."""

    def loss_of(adapters, base, columns):
        merged = {name: merge(base["layers"][name], *adapters[name], scale, dtype) for name in PROJECTIONS}
        weights = {**base, "layers": base["layers"] | merged}
        chunk = jax.checkpoint(lambda tokens_last: encode(weights, *tokens_last, cfg, dtype))
        q_QD, p_PD = (jax.lax.map(chunk, column).reshape(-1, cfg.dim) for column in columns)
        scores_QP = q_QD @ p_PD.T / temperature
        return jnp.mean(jax.nn.logsumexp(scores_QP, axis=1) - jnp.diagonal(scores_QP))

    def step(state, base, columns):
        adapters, moments = state
        loss, grads = jax.value_and_grad(loss_of)(adapters, base, columns)
        updates, moments = optimizer.update(grads, moments, adapters)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return (optax.apply_updates(adapters, updates), moments), metrics

    return step


def merge(w: jax.Array, a: jax.Array, b: jax.Array, scale: float, dtype: jnp.dtype) -> jax.Array:
    """w + scale · a b of every layer, in `dtype`."""
    delta = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(a, b)
    return (w.astype(jnp.float32) + scale * delta).astype(dtype)


def encode(weights: dict, tokens_BT: jax.Array, last_B: jax.Array, cfg: DecoderConfig, dtype: jnp.dtype) -> jax.Array:
    """Unit vectors of the last tokens -> [B, D] in f32. Padding stands behind a text, so causal is mask enough."""
    x_BTD = weights["embed"][tokens_BT].astype(dtype)
    angles = jnp.arange(tokens_BT.shape[1])[:, None] * cfg.rope_theta ** (
        -jnp.arange(0, cfg.head_dim, 2) / cfg.head_dim
    )
    sin_T1H, cos_T1H = jnp.sin(angles)[:, None], jnp.cos(angles)[:, None]

    def norm(x, scale):
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y**2, axis=-1, keepdims=True) + cfg.norm_eps)
        return (y * scale.astype(jnp.float32)).astype(dtype)

    def rotate(x_BTNH):
        a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
        turned = jnp.concatenate([a * cos_T1H - b * sin_T1H, b * cos_T1H + a * sin_T1H], axis=-1)
        return turned.astype(dtype)

    def layer(x_BTD, w):
        h_BTD = norm(x_BTD, w["attn_norm"])
        q_BTNH, k_BTKH, v_BTKH = (jnp.einsum("BTD,DNH->BTNH", h_BTD, w[name]) for name in ("q", "k", "v"))
        a_BTNH = jax.nn.dot_product_attention(rotate(q_BTNH), rotate(k_BTKH), v_BTKH, is_causal=True)
        x_BTD += jnp.einsum("BTNH,NHD->BTD", a_BTNH, w["o"])
        h_BTD = norm(x_BTD, w["mlp_norm"])
        return x_BTD + (jax.nn.silu(h_BTD @ w["gate"]) * (h_BTD @ w["up"])) @ w["down"], None

    x_BTD, _ = jax.lax.scan(layer, x_BTD, weights["layers"])
    v_BD = norm(jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0], weights["norm"]).astype(jnp.float32)
    return v_BD / jnp.linalg.norm(v_BD, axis=-1, keepdims=True)
