"""Attention kernels of accelerators, for rows as attention.py has them.

Shapes: R rows, S positions of a row, N query heads, K key-value heads, H head size.
"""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec as P

from e5jax.projection import KEPT


LANES = 128  # of a TPU's vector unit: rows and heads come in multiples of it
BLOCKS = (512, 256, LANES)


def splash_fits(width: int, head_dim: int) -> bool:
    """Whether rows and heads of these sizes are the TPU kernel's."""
    return width % LANES == 0 and head_dim % LANES == 0


def splash(
    q_RSNH: jax.Array,
    k_RSKH: jax.Array,
    v_RSKH: jax.Array,
    segments_RS: jax.Array,
    causal: bool,
    window: int | None,
    interpret: bool,
) -> jax.Array:
    """The TPU's block-sparse flash attention (JAX's splash_attention) -> [R, S, N, H].

    It never holds a row's scores and skips blocks that no query sees; which text a token belongs to is masked inside a
    block. On a mesh it runs in `shard_map`, a kernel being nothing that the partitioner could split: query heads over
    `tensor` where they divide, and the shards of the batch wherever the vmap around this has put them.
    """

    def attend(q_RSNH, k_RSKH, v_RSKH, segments_RS):
        _, S, N, H = q_RSNH.shape
        kernel = _kernel(S, N, causal, window, interpret)

        def row(q_SNH, k_SKH, v_SKH, segments_S):
            q, k, v = (x.swapaxes(0, 1) for x in (q_SNH * H**-0.5, k_SKH, v_SKH))
            return kernel(q, k, v, kernels.SegmentIds(q=segments_S, kv=segments_S)).swapaxes(0, 1)

        return jax.vmap(row)(q_RSNH, k_RSKH, v_RSKH, segments_RS)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q_RSNH, k_RSKH, v_RSKH, segments_RS)
    heads = P(None, None, "tensor" if k_RSKH.shape[2] % mesh.shape["tensor"] == 0 else None)
    specs = {"in_specs": (heads, heads, heads, P()), "out_specs": heads}
    return jax.shard_map(attend, **specs, check_vma=False)(q_RSNH, k_RSKH, v_RSKH, segments_RS)


def _kernel(width, heads, causal, window, interpret):
    size = (width, width)
    if window is not None and window < width:
        # Seen are keys i - window < j <= i, or, where not causal, |i - j| <= window.
        mask = masks.LocalMask(size, (window - 1, 0) if causal else (window, window), offset=0)
    else:
        mask = masks.CausalMask(size) if causal else masks.FullMask(size)
    block = next(block for block in BLOCKS if width % block == 0)
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KEPT,  # else the backward pass would run the kernel again
        interpret=interpret,
    )
