"""Where arrays live: the mesh, one table from axis names to mesh axes, shardings for any tree.

Parameters carry the *names* of their axes as plain metadata; this file alone knows what the names mean on a mesh.
Without a mesh every function here is the identity, so a notebook or a unit test needs none.
"""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from e5jax.errors import UserError


MESH_AXES = ("data", "fsdp", "tensor")

RULES: dict[str, str | tuple[str, ...]] = {
    "shards": ("data", "fsdp"),  # the bins of a chunk, the queries of a batch
    "embed": "fsdp",
    "vocab": (
        "fsdp",
        "tensor",
    ),  # rows only: a table split on both axes is gathered whole by its lookup
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


def make_mesh(shape: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh; one size may be -1 and takes what is left of the devices.

    The base is replicated over `data`, sharded over `fsdp` and `tensor`: (-1, 1, 1) keeps a whole copy on every
    device, (1, -1, 1) an equal part. Raises UserError where the sizes do not multiply to the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = list(shape)
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = len(devices) // max(1, math.prod(n for n in shape if n != -1))
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise UserError(
            f"mesh {tuple(shape)} (data, fsdp, tensor) does not fit {len(devices)} devices: the three sizes "
            "multiply to the number of devices; one of them may be -1"
        )
    # Auto, because make_mesh's default has been Explicit since jax 0.9 and wants a sharding on every product.
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def local_mesh() -> Mesh | None:
    """All devices of this process, a whole copy of the weights on each; None for one device."""
    devices = jax.local_devices()
    return make_mesh((-1, 1, 1), devices) if len(devices) > 1 else None


def shard_count(mesh: Mesh) -> int:
    """How many bins run side by side: the devices that see different texts."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def shardings(tree, mesh: Mesh):
    """A sharding for every leaf: weights, adapters and Adam moments by their axis names, the rest replicated.

    An axis whose size the mesh axis does not divide stays whole.
    """

    def one(leaf):
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, P())
        shape, axes = leaf.get_value().shape, leaf.get_metadata()["axes"]
        stacked = (None,) * (len(shape) - len(axes))  # the layers, stacked for lax.scan
        names = [RULES.get(axis) for axis in axes]
        sizes = shape[len(stacked) :]
        return NamedSharding(
            mesh,
            P(*stacked, *(_where_divisible(n, s, mesh) for n, s in zip(names, sizes, strict=True))),
        )

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _where_divisible(mesh_axes, size: int, mesh):
    axes = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
    return mesh_axes if size % math.prod(mesh.shape[a] for a in axes) == 0 else None


def constrain(x, *axes: str | None):
    """Pin an array's layout inside jit by axis names; None leaves that axis whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*(RULES.get(axis) for axis in axes)))


def gathered(w, axes: Sequence[str | None]):
    """A weight as its product wants it: whole over `fsdp`, still split over `tensor`.

    Said outright because the partitioner, left free, may gather the activations instead.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return w
    kept = ("tensor" if RULES.get(axis) == "tensor" else None for axis in axes)
    spec = (_where_divisible(axis, size, mesh) for axis, size in zip(kept, w.shape, strict=True))
    return jax.lax.with_sharding_constraint(w, P(*spec))


def over_shards(f: Callable) -> Callable:
    """vmap over a leading axis of shards, one a device; constraints inside `f` are kept off that axis."""
    return jax.vmap(f, spmd_axis_name=RULES["shards"])


def batch_shardings(tree, mesh: Mesh, axis_of: Callable[[object], int | None]):
    """Shardings of host arrays whose axis `axis_of(leaf)` runs over shards (None: replicated)."""

    def one(leaf):
        axis = axis_of(leaf)
        return NamedSharding(mesh, P() if axis is None else P(*(None,) * axis, RULES["shards"]))

    return jax.tree.map(one, tree)


def local_shards(mesh: Mesh) -> frozenset[int]:
    """The shards whose bins lie on devices of this process."""
    of_shard = mesh.devices.reshape(shard_count(mesh), -1)
    mine = jax.process_index()
    return frozenset(i for i, devices in enumerate(of_shard) if any(d.process_index == mine for d in devices))


def put(tree, layouts):
    """Host arrays -> arrays on devices; of several processes, each hands over what its own devices hold."""
    if jax.process_count() == 1:
        return jax.device_put(tree, layouts)
    whole = lambda x, layout: jax.make_array_from_callback(np.shape(x), layout, lambda index: np.asarray(x)[index])
    return jax.tree.map(whole, tree, layouts)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())
