"""Several trainings of one model as one: sums of what they learnt, weight by weight.

A LoRA's matrices must not be averaged one by one, since (A₁ + A₂)(B₁ + B₂) is not A₁B₁ + A₂B₂. Side by side they add up
exactly: [A₁ A₂] [c₁B₁; c₂B₂] = c₁A₁B₁ + c₂A₂B₂, an adapter whose rank is the sum of theirs. Inner products of such
differences, and their best approximation of a lower rank, need small matrices only.

Shapes: L layers, D components in, O components out, R rank.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


Params = dict[str, Any]


def linear(weights: Sequence[float], inner: np.ndarray) -> np.ndarray:
    """Coefficients of a weighted sum -> [N]; `inner` products of the N differences are of no concern."""
    return np.asarray(weights)


def slerp(weights: Sequence[float], inner: np.ndarray) -> np.ndarray:
    """Coefficients of the point between two on the arc that joins them (Shoemake 1985), at the second's weight -> [2].

    `inner` [2, 2]: inner products. The length goes from the one's to the other's, where a sum would be shorter than
    both. Of parallel ones, and where one is zero, it is the sum.
    """
    lengths = np.sqrt(np.diag(inner))
    if not lengths.all():
        return np.asarray(weights)
    angle = np.arccos(np.clip(inner[0, 1] / lengths.prod(), -1, 1))
    if min(angle, np.pi - angle) < 1e-4:
        return np.asarray(weights)
    return np.sin(np.asarray(weights) * angle) / np.sin(angle)


METHODS = {"linear": linear, "slerp": slerp}


def of_weights(trees: Sequence[Params], weights: Sequence[float], method: str) -> Params:
    """Arrays of one shape each in every tree, merged tensor by tensor, in f32."""
    flat = [flatten_dict(tree) for tree in trees]
    merged = {}
    for path in flat[0]:
        tensors = [np.asarray(tree[path], np.float64) for tree in flat]
        merged[path] = _sum(tensors, METHODS[method](weights, _inner(tensors))).astype(np.float32)
    return unflatten_dict(merged)


def of_adapters(
    trees: Sequence[Params], scales: Sequence[float], weights: Sequence[float], method: str, rank: int | None
) -> tuple[Params, int, float]:
    """Adapters `a` [L, D…, R] and `b` [L, R, O…] -> (the merged ones, whose scale is 1; their rank; what is lost).

    `scales`: alpha / rank of each. `rank` None: the sum of all ranks, exact. Else the best approximation of that rank
    (Eckart and Young 1936); lost is its relative error over all layers, 0 for none. What else is trained is merged as
    it is.
    """
    flat = [flatten_dict(tree) for tree in trees]
    pairs = sorted({path[:-1] for path in flat[0] if path[-1] == "a" and (*path[:-1], "b") in flat[0]})
    merged = {}
    error = total = 0.0
    for path in pairs:
        of = lambda name, path=path: [np.asarray(tree[*path, name], np.float64) for tree in flat]
        a, b = of("a"), [scale * x for scale, x in zip(scales, of("b"), strict=True)]
        a_LDR = [x.reshape(len(x), -1, x.shape[-1]) for x in a]
        b_LRO = [x.reshape(*x.shape[:2], -1) for x in b]
        layers = [
            _layer([x[layer] for x in a_LDR], [x[layer] for x in b_LRO], weights, method, rank)
            for layer in range(len(a[0]))
        ]
        down, up, lost, length = zip(*layers, strict=True)
        error, total = error + sum(lost), total + sum(length)
        merged[*path, "a"] = np.stack(down).reshape(*a[0].shape[:-1], -1).astype(np.float32)
        merged[*path, "b"] = np.stack(up).reshape(len(up), -1, *b[0].shape[2:]).astype(np.float32)
    beside = [path for path in flat[0] if path not in merged]
    if beside:
        others = [unflatten_dict({path: tree[path] for path in beside}) for tree in flat]
        merged |= flatten_dict(of_weights(others, weights, method))
    whole = sum(tree[*pairs[0], "a"].shape[-1] for tree in flat)
    return unflatten_dict(merged), whole if rank is None else rank, float(np.sqrt(error / total)) if total else 0.0


def _layer(a_DR, b_RO, weights, method, rank):
    """One layer's -> (A [D, R], B [R, O], squared error, squared length)."""
    inner = np.array(
        [
            [np.sum((a.T @ c) * (b @ d.T)) for c, d in zip(a_DR, b_RO, strict=True)]
            for a, b in zip(a_DR, b_RO, strict=True)
        ]
    )
    coefficients = METHODS[method](weights, inner)
    down = np.concatenate(a_DR, axis=1)
    up = np.concatenate([c * b for c, b in zip(coefficients, b_RO, strict=True)])
    length = float(coefficients @ inner @ coefficients)
    if rank is None:
        return down, up, 0.0, length
    q, r = np.linalg.qr(down)
    p, s = np.linalg.qr(up.T)
    left, values, right = np.linalg.svd(r @ s.T)
    root = np.sqrt(values[:rank])
    return q @ (left[:, :rank] * root), (root[:, None] * right[:rank]) @ p.T, float(np.sum(values[rank:] ** 2)), length


def _inner(tensors):
    flat = np.stack([tensor.ravel() for tensor in tensors])
    return flat @ flat.T


def _sum(tensors, coefficients):
    return sum(c * tensor for c, tensor in zip(coefficients, tensors, strict=True))
