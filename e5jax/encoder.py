"""Texts -> unit vectors.

Texts go into the same bins as in training, one row width for each range of lengths, so at most a handful of shapes is
compiled whatever the texts; the answer comes back in their order and does not depend on what else is in the batch.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from e5jax import loss
from e5jax.attention import Rows
from e5jax.decoder import Decoder
from e5jax.errors import UserError
from e5jax.formats import Prompts, Tokenizer
from e5jax.packing import Bins, BinShape, Placement, best_fit, fill


WIDTHS = (128, 512, 2048, 8192)
BIN_TOKENS = 4096
SHORTEST = 8  # a text takes at least this much of a row, which bounds the texts a bin can hold


def pack_corpus(
    lengths: np.ndarray, text: Callable[[int], np.ndarray], shards: int
) -> Iterator[tuple[Bins, Rows, np.ndarray, np.ndarray]]:
    """Texts -> (bins of one chunk, their rows, texts in them, index of each one's vector), a few shapes in all."""
    narrower = 0
    for width in WIDTHS:
        texts = np.flatnonzero((lengths > narrower) & (lengths <= width))
        narrower = width
        if len(texts):
            yield from _pack_width(texts, lengths, text, shards, width)


def _pack_width(texts, lengths, text, shards, width):
    room = np.maximum(lengths[texts], SHORTEST)
    row, start = best_fit(room, np.full(len(texts), width))
    _, row = np.unique(row, return_inverse=True)  # rows in use, numbered from 0
    rows_a_bin = max(1, BIN_TOKENS // width)
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
) -> np.ndarray:
    """Token ids of each text -> float32 [len(texts), dim], in input order; `run(bins, rows)` is `embed` of a model.

    Raises UserError for a text longer than the widest row.
    """
    vectors = np.zeros((len(texts), dim), np.float32)
    lengths = np.array([len(t) for t in texts], np.int64)
    if lengths.max(initial=0) > WIDTHS[-1]:
        raise UserError(f"a text of {lengths.max():,} tokens cannot be encoded: at most {WIDTHS[-1]:,}")
    for bins, rows, which, at in pack_corpus(lengths, texts.__getitem__, shards):
        vectors[which] = np.asarray(run(bins, rows))[at]
    return vectors


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A trained embedder: `Encoder.load(directory).encode(texts)`."""

    model: Decoder
    tokenizer: Tokenizer
    max_length: int
    dtype: jnp.dtype
    prompts: Prompts
    """What the model's own files want in front of texts; `encode` uses it where an instruction is given."""
    digest: str
    """sha256 of its weights and settings."""

    @classmethod
    def load(cls, name: str, *, revision: str | None = None, max_length: int | None = None) -> "Encoder":
        """From a workdir or one of its checkpoints, a Hugging Face directory or a hub name; adapters are merged.

        `max_length` in tokens, special ones included; None: what it was trained with, else 512. Raises UserError where
        `name` is none of these or cannot be read.
        """
        from e5jax.models import open_model  # models imports what trains, this is what serves

        opened = open_model(name, revision=revision, mesh=None, dtype=None)
        max_length = max_length or opened.max_length or 512
        if max_length > WIDTHS[-1]:
            raise UserError(f"max_length {max_length}: texts of more than {WIDTHS[-1]} tokens cannot be encoded")
        return cls(
            model=opened.model,
            tokenizer=opened.tokenizer,
            max_length=max_length,
            dtype=opened.dtype,
            prompts=opened.prompts,
            digest=opened.digest,
        )

    def encode(self, texts: Sequence[str], instruction: str | None = None) -> np.ndarray:
        """-> float32 [len(texts), D], unit norm, in input order.

        `instruction` goes in front of every text as `Instruct: {instruction}\\nQuery: `, or as the model's files spell
        it: give it for queries, leave passages bare (E5-Mistral eq. 1). Texts beyond `max_length`
        tokens are cut before </s>.
        """
        if instruction is not None:
            before = self.prompts.before_query(instruction)
            texts = [before + text for text in texts]
        ids = self.tokenizer.encode(texts, self.max_length) if texts else []
        graphdef, state = nnx.split(self.model)
        run = lambda bins, rows: embed(graphdef, (state,), bins, rows, self.dtype)
        return encode_tokens(run, ids, self.model.cfg.dim, shards=1)


@partial(jax.jit, static_argnums=(0, 3, 4))
def embed(graphdef, weights: tuple, bins: Bins, rows: Rows, dtype: jnp.dtype) -> jax.Array:
    """`loss.encode` for use: no dropout, nothing kept. `weights`: the states that make up the model."""
    return loss.encode(
        nnx.merge(graphdef, *weights),
        bins,
        rows,
        dtype=dtype,
        remat=False,
        dropout_rate=0.0,
        dropout_key=None,
    )
