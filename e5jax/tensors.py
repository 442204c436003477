"""Trees of arrays in safetensors files and back, through a table of names.

Files store a projection as [out, in], one tensor a layer (Hugging Face's layout); here it has the shape of its einsum,
inputs first, layers stacked in front. Nothing else is read: a pickle can run code.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from e5jax.errors import UserError


# Path in our tree -> (name in the files, "{}" for the layer; how many of our axes are inputs, 0: it lies there
# as it lies here).
Table = Mapping[str, tuple[str, int]]

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
MAX_FILE_BYTES = 5_000_000_000
logger = logging.getLogger(__name__)


def read_json(path: Path) -> dict:
    """A JSON object. Raises UserError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def weight_files(directory: Path, stem: str) -> list[Path]:
    """`stem`.safetensors, or the files of its index. Raises UserError for none, a missing one, or one elsewhere."""
    single, index = (directory / f"{stem}.safetensors{suffix}" for suffix in ("", ".index.json"))
    if single.exists():
        names = {single.name}
    elif index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index}: weight_map must say which file holds which tensor")
        names = set(map(str, weight_map.values()))
    else:
        pickles = [p.name for p in directory.glob("*") if p.suffix in (".bin", ".pt", ".pth")]
        raise UserError(
            f"{directory}: neither {single.name} nor {index.name} is here"
            + f"; {', '.join(sorted(pickles)[:3])}: pickle files are never read, since reading one can run code. "
            "Convert them once where you trust them: from_pretrained(...) and save_pretrained(...) of the library "
            "that wrote them give safetensors" * bool(pickles)
        )
    return [_inside(directory, name) for name in sorted(names)]


def digest_files(files: Sequence[Path]) -> str:
    """sha256 over names and every byte: as fast as the disk, or 1-2 GB/s."""
    lines = []
    for path in files:
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _inside(directory: Path, name: str) -> Path:
    """The file of that name. An index comes from strangers: it may name plain files of its own folder only."""
    path, home = directory / name, directory.resolve()
    homes = [home]
    if home.parent.name == "snapshots":  # the hub's cache, whose snapshots link to the blobs beside
        homes.append(home.parent.parent / "blobs")
    plain = re.fullmatch(r"[\w.-]+\.safetensors", name)
    if not plain or not any(path.resolve().is_relative_to(h) for h in homes):
        raise UserError(f"{directory}: {name!r} is not a safetensors file inside this folder")
    if not path.is_file():
        raise UserError(f"{directory}: {name} is missing")
    return path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor in a file, not read yet."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """That part of it. The file is mapped for this read alone, so no page of it stays counted as ours."""
        with safe_open(self.file, framework="np") as file:
            return file.get_slice(self.name)[index]


def stored_tensors(files: Sequence[Path]) -> dict[str, Stored]:
    """The tensors of safetensors files by name. Raises UserError for a damaged file."""
    tensors = {}
    for path in files:
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():
                    head = file.get_slice(name)
                    shape, dtype = tuple(head.get_shape()), head.get_dtype()
                    tensors[name] = Stored(file=path, name=name, shape=shape, dtype=dtype)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: damaged, or no safetensors file: {error}") from error
    return tensors


MOST_LAYERS = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """How one of our arrays lies in files: as one tensor, or as one a layer where layers are stacked."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    """Of one tensor, in our layout."""
    inputs: int
    stacked: bool

    @classmethod
    def of(cls, name: str, inputs: int, shape: tuple[int, ...]) -> "Leaf":
        """A row of the table and the shape of our array."""
        stacked = "{}" in name
        names = tuple(map(name.format, range(shape[0]))) if stacked else (name,)
        return cls(names=names, shape=shape[stacked:], inputs=inputs, stacked=stacked)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of one tensor as stored: [out, in] for a projection."""
        inner, outer = self.shape[: self.inputs], self.shape[self.inputs :]
        return (math.prod(outer), math.prod(inner)) if self.inputs else self.shape

    def to_stored(self, x: np.ndarray) -> np.ndarray:
        """One tensor from our layout to the stored one."""
        return np.ascontiguousarray(x.reshape(self.stored_shape[::-1]).T) if self.inputs else x

    def read(self, tensor: Stored, region: tuple[slice, ...]) -> np.ndarray:
        """Our `region` of one tensor; of the file, only what the first input and first output axis span."""
        if not self.inputs:
            return tensor.read(region)

        def span(axes, first):
            start, stop, _ = first.indices(axes[0])
            block = math.prod(axes[1:])
            return slice(start * block, stop * block), (stop - start, *axes[1:])

        n = self.inputs
        columns, inner = span(self.shape[:n], region[0])
        rows, outer = span(self.shape[n:], region[n])
        part = tensor.read((rows, columns)).T.reshape(*inner, *outer)
        return part[:, *region[1:n], :, *region[n + 1 :]]


def load_tensors(
    tensors: Mapping[str, Stored],
    table: Table,
    abstract: dict,
    shardings: dict | None,
    dtype: jnp.dtype,
    where: Path,
) -> dict:
    """The arrays of a tree of shapes, in `dtype`, every device reading its own part.

    `shardings` is the same tree of shardings (None: the default device); `where` stands in messages. Beyond the arrays
    made, the host holds one leaf's parts at a time.

    Raises UserError naming tensors that are missing, unexpected, of another shape or dtype, or not finite.
    """
    arrays = flatten_dict(abstract, sep=".")
    places = flatten_dict(shardings, sep=".") if shardings else dict.fromkeys(arrays)
    layers = max((array.shape[0] for path, array in arrays.items() if "{}" in table[path][0]), default=0)
    if layers > max(len(tensors), MOST_LAYERS):  # or the names of so many would be made
        raise UserError(f"{where}: {layers:,} layers by its configuration, and {len(tensors):,} tensors in its files")
    leaves = {path: Leaf.of(*table[path], array.shape) for path, array in arrays.items()}
    _check(tensors, leaves.values(), where)
    loaded = {}
    for path, leaf in leaves.items():
        read, shape = _reader(leaf, tensors, jnp.dtype(dtype)), arrays[path].shape
        if places[path] is None:
            loaded[path] = jax.device_put(read((slice(None),) * len(shape)))
        else:
            loaded[path] = jax.make_array_from_callback(shape, places[path], read)
    return unflatten_dict(loaded, sep=".")


def _check(tensors: Mapping[str, Stored], leaves: Iterable[Leaf], where: Path):
    """Names, shapes and dtypes, before any weight is read."""
    wanted = {name: leaf.stored_shape for leaf in leaves for name in leaf.names}
    found = {name: tensors[name] for name in wanted if name in tensors}
    complaints = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {list(tensor.shape)} where {list(wanted[name])} is wanted"
            for name, tensor in found.items()
            if tensor.shape != wanted[name]
        ],
        f"in none of {', '.join(DTYPES)}": [
            f"{name} {tensor.dtype}" for name, tensor in found.items() if tensor.dtype not in DTYPES
        ],
    }
    for complaint, names in complaints.items():
        if names:
            more = f" and {len(names) - 5} more" * (len(names) > 5)
            raise UserError(f"{where}: tensors {complaint}: {', '.join(names[:5])}{more}")


def _reader(leaf: Leaf, tensors: Mapping[str, Stored], dtype: np.dtype) -> Callable:
    """A function from an index into our array to that part of it."""
    parts = {}  # devices that hold the same part share one read

    def read(index: tuple[slice, ...]) -> np.ndarray:
        if (key := str(index)) not in parts:
            layers, region = (index[0], index[1:]) if leaf.stacked else (slice(None), index)
            sizes = [len(range(*s.indices(n))) for s, n in zip(region, leaf.shape, strict=True)]
            part = np.empty((len(leaf.names[layers]), *sizes), dtype)
            for row, name in zip(part, leaf.names[layers], strict=True):
                row[...] = leaf.read(tensors[name], region)
                if not np.isfinite(row).all():
                    raise UserError(f"{tensors[name].file}: {name} holds NaN or infinity (as {dtype})")
            parts[key] = part if leaf.stacked else part[0]
        return parts[key]

    return read


def save_tensors(
    tree: dict, table: Table, dtype: jnp.dtype, directory: Path, stem: str, config: dict[str, dict]
) -> None:
    """The arrays of a tree -> `stem`.safetensors (beyond 5 GB: several and an index) and then its JSON `config` files.

    Written aside and renamed, config last: a folder that has it is whole. This process must reach every part of every
    array. Raises UserError where the folder holds such weights already, or a weight is not finite in that dtype.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.glob(f"{stem}*.safetensors")):
        raise UserError(f"{directory}: holds weights already; remove them or choose another folder")
    arrays = flatten_dict(tree, sep=".")
    dtype = jnp.dtype(dtype)
    groups = _groups(arrays, table, dtype)
    weight_map = {}
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as aside:
        for number, group in enumerate(groups, 1):
            part = f"-{number:05}-of-{len(groups):05}" * (len(groups) > 1)
            file = f"{stem}{part}.safetensors"
            tensors = {}
            for path, leaf, layer in group:
                array = arrays[path][layer] if leaf.stacked else arrays[path]
                with np.errstate(over="ignore"):  # said below, by name
                    tensor = leaf.to_stored(np.asarray(array).astype(dtype))
                if not np.isfinite(tensor).all():
                    raise UserError(f"{leaf.names[layer]} holds NaN or infinity as {dtype}: nothing loads it")
                tensors[leaf.names[layer]] = tensor
            # The metadata is what transformers wants to see before it reads a file.
            save_file(tensors, Path(aside, file), metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
            if len(groups) > 1:
                logger.info("%s: %s, %d of %d", directory, file, number, len(groups))
        if len(groups) > 1:
            config = {f"{stem}.safetensors.index.json": {"weight_map": weight_map}} | config
        for name, content in config.items():
            Path(aside, name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name in set(weight_map.values()):  # safetensors makes them for the owner's eyes alone
            Path(aside, name).chmod(Path(aside, next(iter(config))).stat().st_mode)
        for name in [*sorted(set(weight_map.values())), *config]:
            os.replace(Path(aside, name), directory / name)


def _groups(arrays: Mapping[str, jax.Array], table: Table, dtype: np.dtype) -> list[list]:
    """Which (path, leaf, layer) go into which file."""
    groups, room = [[]], MAX_FILE_BYTES
    for path, array in arrays.items():
        leaf = Leaf.of(*table[path], array.shape)
        size = math.prod(leaf.shape) * dtype.itemsize
        for layer in range(len(leaf.names)):
            if size > room and groups[-1]:
                groups, room = [*groups, []], MAX_FILE_BYTES
            groups[-1].append((path, leaf, layer))
            room -= size
    return groups
