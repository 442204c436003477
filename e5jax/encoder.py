"""Texts -> unit vectors.

Texts go into the same bins as in training, one row width for each range of lengths, so at most a handful of shapes is
compiled whatever the texts; the answer comes back in their order and does not depend on what else is in the batch. What
all texts begin with, such as an instruction, a causal decoder reads once.
"""

import contextlib
import dataclasses
import logging
import reprlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from e5jax import architecture, loss
from e5jax.architecture import Model
from e5jax.attention import Rows
from e5jax.decoder import Prefix
from e5jax.errors import UserError
from e5jax.formats import Prompts, Tokenizer
from e5jax.layers import NO_DROPOUT
from e5jax.packing import Bins, BinShape, Placement, best_fit, fill
from e5jax.sharding import batch_shardings, shard_count


# Longest text of a class, and the rows it is packed in: twice as wide for short ones, where in rows of 128 tokens a
# tenth is left over that no other text fits in. Of long ones attention goes over the whole row: two in a row are
# four times the scores of two in rows of their own.
CLASSES = ((128, 256), (512, 512), (2048, 2048), (8192, 8192), (16_384, 16_384), (32_768, 32_768))
BIN_TOKENS = 4096
SHORTEST = 8  # a text takes at least this much of a row, which bounds the texts a bin can hold
WINDOW = 16_384  # texts sorted and packed together
AHEAD = 2  # bins a device is given before the vectors of the first are waited for
# Tokens that all texts begin with are read once where there are so many of them, and where they are so much of a text:
# attending to them apart from a long text's own tokens costs more than it saves.
SHARED, LEAST_SHARE = 8, 1 / 16
PREFIX = 32  # their room is a multiple of this, so that few shapes are compiled
logger = logging.getLogger(__name__)


def pack_corpus(
    lengths: np.ndarray, text: Callable[[int], np.ndarray], shards: int, small: bool
) -> Iterator[tuple[Bins, Rows, np.ndarray, np.ndarray]]:
    """Texts -> (bins of one chunk, their rows, texts in them, index of each one's vector), a few shapes in all.

    `small`: what fits in one row goes in a bin of one row. That is sooner done, and in less than float32 the last bits
    depend on the shape of a bin.
    """
    row, start, widths = _place_in_rows(lengths)
    for width in np.unique(widths):
        texts = np.flatnonzero(widths[row] == width)
        yield from _bins_of(texts, row[texts], start[texts], lengths, text, shards, small, int(width))


def _place_in_rows(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> (row of each text, its start in the row, width of each row).

    Long texts come first, in rows of their class; shorter ones fill what is left of these before they open their own.
    """
    room = np.maximum(lengths, SHORTEST)
    row, start = np.zeros((2, len(lengths)), np.int64)
    widths, used = np.zeros((2, 0), np.int64)
    shorter = [0, *(longest for longest, _ in CLASSES)]
    for below, (longest, width) in reversed([*zip(shorter, CLASSES, strict=False)]):
        texts = np.flatnonzero((lengths > below) & (lengths <= longest))
        if not len(texts):
            continue
        widths = np.append(widths, np.full(len(texts), width))  # a row for each, should it need one
        used = np.append(used, np.zeros(len(texts), np.int64))
        here, after = best_fit(room[texts], widths - used)
        start[texts] = used[here] + after
        np.add.at(used, here, room[texts])
        opened = used > 0
        row[texts] = (np.cumsum(opened) - 1)[here]
        widths, used = widths[opened], used[opened]
    return row, start, widths


def _bins_of(texts, row, start, lengths, text, shards, small, width):
    _, row = np.unique(row, return_inverse=True)  # rows in use, numbered from 0
    alone = small and shards == 1 and width <= 512 and row.max(initial=0) == 0
    rows_a_bin = 1 if alone else max(1, BIN_TOKENS // width)
    shape = BinShape(
        chunks=1,
        shards=shards,
        rows=((width, rows_a_bin),),
        slots=rows_a_bin * width // SHORTEST,
    )
    bin_, offset = row // rows_a_bin, row % rows_a_bin * width + start
    for first in range(0, int(bin_.max()) + 1, shards):
        here = np.flatnonzero((bin_ >= first) & (bin_ < first + shards))
        here = here[np.lexsort((offset[here], bin_[here]))]
        local = bin_[here] - first
        placement = Placement(
            chunks_used=1,
            bin=local,
            offset=offset[here],
            slot=np.arange(len(here)) - np.searchsorted(local, local),
        )
        these = texts[here]
        bins = fill(lambda i, these=these: text(these[i]), lengths[these], placement, shape)
        yield bins, shape.rows, these, placement.vector(shape.slots)


def encode_tokens(
    run: Callable[[Bins, Rows], jax.Array],
    texts: Sequence[np.ndarray],
    dim: int,
    shards: int,
    small: bool,
    tell: Callable[[np.ndarray], None],
) -> np.ndarray:
    """Token ids of each text -> float32 [len(texts), dim], in input order; `run(bins, rows)` is `embed` of a model.

    `small` as in `pack_corpus`; `tell` is given the indices of texts as they are done. Raises UserError for a text
    longer than the widest row.
    """
    vectors = np.zeros((len(texts), dim), np.float32)
    lengths = np.array([len(t) for t in texts], np.int64)
    longest, _ = CLASSES[-1]
    if lengths.max(initial=0) > longest:
        raise UserError(f"a text of {lengths.max():,} tokens cannot be encoded: at most {longest:,}")
    running = deque()
    for bins, rows, which, at in pack_corpus(lengths, texts.__getitem__, shards, small):
        running.append((run(bins, rows), which, at))
        if len(running) > AHEAD:
            _take(*running.popleft(), vectors, tell)
    for done in running:
        _take(*done, vectors, tell)
    return vectors


def _take(output, which, at, vectors, tell):
    vectors[which] = np.asarray(output)[at]
    tell(which)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """A trained embedder: `Encoder.load(directory).encode(texts)`."""

    model: Model
    tokenizer: Tokenizer
    max_length: int
    """Tokens of a text, special ones included; longer texts are cut before </s>."""
    dtype: jnp.dtype
    prompts: Prompts
    """What the model's own files want in front of texts; `encode` uses it where an instruction is given."""
    digest: str
    """sha256 of its weights and settings."""
    mesh: Mesh | None
    """The devices that share the texts; None: one device."""

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        max_length: int | None = None,
        dtype: str | None = None,
        mesh: Mesh | None = None,
    ) -> "Encoder":
        """From a workdir or one of its checkpoints, a Hugging Face directory or a hub name; adapters are merged.

        `max_length` in tokens, special ones included; None: what it was trained with, else 512. `dtype` of weights and
        products; None: as stored. `mesh` of (data, fsdp, tensor): the weights are laid out on it and the texts spread.
        Raises UserError where `name` is none of these or cannot be read.
        """
        from e5jax.models import open_model  # models imports what trains, this is what serves

        opened = open_model(name, revision=revision, mesh=mesh, dtype=dtype)
        longest = min(opened.model.cfg.longest or CLASSES[-1][0], CLASSES[-1][0])
        max_length = max_length or min(opened.max_length or 512, longest)
        if max_length > longest:
            raise UserError(f"max_length {max_length}: {name} takes texts of at most {longest} tokens")
        return cls(
            model=opened.model,
            tokenizer=opened.tokenizer,
            max_length=max_length,
            dtype=opened.dtype,
            prompts=opened.prompts,
            digest=opened.digest,
            mesh=mesh,
        )

    def encode(self, texts: Iterable[str], instruction: str | None = None) -> np.ndarray:
        """-> float32 [len(texts), D], unit norm, in input order; an iterator is read once.

        `instruction` goes in front of every text as `Instruct: {instruction}\\nQuery: `, or as the model's files spell
        it: give it for queries, leave passages bare (E5-Mistral eq. 1). A model with other prompts (E5's "query: ")
        has them in `prompts`: put them in front yourself. Texts beyond `max_length` tokens are cut before
        </s>, and a warning says how many. Raises UserError for what is no list of texts.
        """
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts; for one text: encode([text])")
        before = "" if instruction is None else self.prompts.before_query(instruction)
        vectors, cut = [np.zeros((0, self.model.cfg.dim), np.float32)], 0
        texts = iter(texts)
        while window := list(islice(texts, WINDOW)):
            if (odd := next((text for text in window if not isinstance(text, str)), None)) is not None:
                raise UserError(f"encode takes texts, not {reprlib.repr(odd)}")
            ids, longer = self.tokenizer.encode_counting([before + text for text in window], self.max_length)
            vectors.append(self.encode_ids(ids, silent))
            cut += longer
        if cut:
            logger.warning("%d texts were longer than %d tokens and cut", cut, self.max_length)
        return np.concatenate(vectors)

    def encode_ids(self, ids: Sequence[np.ndarray], tell: Callable[[np.ndarray], None]) -> np.ndarray:
        """Token ids of each text, special ones included -> float32 [len(ids), D], unit norm, in input order.

        `tell` is given the indices of texts as they are done.
        """
        shared = shared_prefix(ids) if architecture.shares_prefixes(self.model.cfg) else 0
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            graphdef, weights = nnx.split(self.model)
            if shared >= SHARED and shared >= LEAST_SHARE * np.mean([len(text) for text in ids]):
                prefix = np.zeros(-(-shared // PREFIX) * PREFIX, np.int32)
                prefix[:shared] = ids[0][:shared]
                model = nnx.merge(graphdef, weights)  # a copy of the model, not of its weights
                model.prefix = read_prefix(graphdef, weights, prefix, np.int32(shared), self.dtype)
                graphdef, weights = nnx.split(model)
                ids = [text[shared:] for text in ids]

            def run(bins, rows):
                if self.mesh is not None:
                    layout = batch_shardings(bins, self.mesh, lambda x: 1 if x.ndim == 3 else None)
                    bins = jax.device_put(bins, layout)
                return embed(graphdef, (weights,), bins, rows, self.dtype)

            shards = 1 if self.mesh is None else shard_count(self.mesh)
            return encode_tokens(run, ids, self.model.cfg.dim, shards, self.dtype == jnp.float32, tell)

    def attending(self, window: int | None, rope_theta: float) -> "Encoder":
        """The same weights under another sliding window (None: none) and base of the rotary angles."""
        cfg = dataclasses.replace(self.model.cfg, window=window, rope_theta=rope_theta)
        graphdef, _ = architecture.abstract(cfg, self.dtype)
        return dataclasses.replace(self, model=nnx.merge(graphdef, nnx.state(self.model)))


def silent(which: np.ndarray) -> None:
    """For whom progress does not matter."""


def shared_prefix(ids: Sequence[np.ndarray]) -> int:
    """How many tokens all texts begin with, where there are several; each keeps at least one of its own."""
    if len(ids) < 2:
        return 0
    shared = min(map(len, ids)) - 1
    for text in ids:
        other = np.flatnonzero(text[:shared] != ids[0][:shared])
        shared = int(other[0]) if len(other) else shared
    return shared


@partial(jax.jit, static_argnums=(0, 4))
def read_prefix(graphdef, weights: nnx.State, tokens_P: jax.Array, used: jax.Array, dtype: jnp.dtype) -> Prefix:
    """What a decoder keeps of tokens that all texts begin with."""
    return nnx.merge(graphdef, weights).read_prefix(tokens_P, used, dtype)


@partial(jax.jit, static_argnums=(0, 3, 4))
def embed(graphdef, weights: tuple, bins: Bins, rows: Rows, dtype: jnp.dtype) -> jax.Array:
    """`loss.encode` for use: no dropout, nothing kept. `weights`: the states that make up the model."""
    return loss.encode(
        nnx.merge(graphdef, *weights),
        bins,
        rows,
        dtype=dtype,
        kept=0,
        remat=False,
        dropout=NO_DROPOUT,
        dropout_key=None,
    )
