"""Encode a corpus: `python -m e5jax.encode --model M --input F --output D`.

corpus → shards of texts → token ids, one shard ahead → bins → unit vectors → cut, quantised → D, a shard at a time
       → the index, by whichever process finds all shards there
"""

import hashlib
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import jax
import numpy as np
from tqdm import tqdm

from e5jax import command, corpus, places, vectors
from e5jax import config as configs
from e5jax.config import EncodeConfig
from e5jax.corpus import Corpus
from e5jax.encoder import Encoder
from e5jax.errors import UserError
from e5jax.prompts import for_task
from e5jax.reach import reaching
from e5jax.sharding import local_mesh


PROG = "python -m e5jax.encode"


def encode(config: EncodeConfig) -> dict | None:
    """Encode, or go on, as the config says -> the index; None while other processes have shards to write.

    Peak memory does not depend on the size of the corpus. Raises UserError for what the user can mend.
    """
    source = Corpus(path=config.input, field=config.field, id_field=config.id_field, split=config.split)
    part, parts = configs.part_of(config.part) if config.part else (jax.process_index(), jax.process_count())
    if parts > 1 and config.input == "-":
        raise UserError("standard input cannot be shared among processes: write it to a file")
    texts = corpus.count(source)
    instruction = config.instruction if config.task is None else for_task(config.task)
    output = places.place(config.output)
    vectors.check_folder(output)
    encoder = Encoder.load(config.model, max_length=config.max_length, dtype=config.dtype, mesh=local_mesh())
    encoder = reaching(encoder, config.window, config.rope_theta, config.rope_scale)
    dims = vectors.Kept(dims=config.dims, quantize=config.quantize).check(encoder.model.cfg.dim)
    side = config.side or ("passage" if instruction is None else "query")
    before = encoder.prompts.passage if side == "passage" else encoder.prompts.before_query(instruction)
    job = {
        "model": config.model,
        "digest": encoder.digest,
        "tokenizer": encoder.tokenizer.digest,
        "input": PurePath(config.input).name,
        "fingerprint": corpus.fingerprint(source),
        "field": config.field,
        "id_field": config.id_field,
        "split": config.split,
        "prompt": before,
        "max_length": encoder.max_length,
        "computed_in": str(np.dtype(encoder.dtype)),
        "window": config.window,
        "rope_theta": config.rope_theta,
        "rope_scale": config.rope_scale,
        "dims": dims,
        "dtype": config.quantize or "float32",
        "shard_size": config.shard_size,
    }
    vectors.open_job(output, job)

    def wanted(shard: int) -> bool:
        return config.input == "-" or (shard % parts == part and not vectors.is_done(output, shard))

    progress = Progress(*_work(texts, config.shard_size, part, parts, lambda shard: vectors.is_done(output, shard)))
    shards = corpus.shards(source, config.shard_size, wanted)
    last, truncated = -1, 0
    for last, ids, tokens, cut, digest in _ahead(_tokenized(shards, encoder, before)):
        if tokens is None:
            continue
        if vectors.is_done(output, last):
            if vectors.read_facts(output, last)["sha256"] != digest:
                raise UserError(f"standard input is not what shard {last} of {output} was made from")
            continue
        lengths = np.array([len(t) for t in tokens])
        of_texts = encoder.encode_ids(tokens, lambda which, n=lengths: progress.done(len(which), int(n[which].sum())))
        facts = {"tokens": int(lengths.sum()), "truncated": cut, "sha256": digest}
        vectors.write_shard(output, last, ids, vectors.quantized(of_texts, config.dims, job["dtype"]), facts)
        truncated += cut
    progress.close()
    if truncated:
        print(f"{truncated:,} texts were longer than {encoder.max_length} tokens and cut")
    index = vectors.write_index(output, last + 1)
    what = "shards of other processes are still to come" if index is None else f"{index['count']:,} texts in all"
    print(f"{output}: {what}")
    return index


def _tokenized(shards, encoder: Encoder, before: str) -> Iterator[tuple]:
    """(shard, ids, token ids, texts cut, sha256 of the texts); all None for a shard that is not wanted."""
    for shard, texts in shards:
        if texts is None:
            yield shard, None, None, None, None
            continue
        tokens, cut = encoder.tokenizer.encode_counting([before + text for _, text in texts], encoder.max_length)
        digest = hashlib.sha256("\0".join(text for _, text in texts).encode()).hexdigest()
        yield shard, [id_ for id_, _ in texts], tokens, cut, digest


def _ahead(items: Iterator) -> Iterator:
    """The same items, the next one in the making while the last is used."""
    made: queue.Queue = queue.Queue(maxsize=1)

    def make():
        try:
            for item in items:
                made.put((item, None))
            made.put((None, None))
        except BaseException as error:
            made.put((None, error))

    # A daemon, not a pool: Ctrl-C must not wait for the next line of a pipe.
    threading.Thread(target=make, daemon=True).start()
    while True:
        item, error = made.get()
        if error is not None:
            raise error
        if item is None:
            return
        yield item


def _work(texts: int | None, size: int, part: int, parts: int, is_done) -> tuple[int | None, int]:
    """-> (texts of this process, those of them that are done)."""
    if texts is None:
        return None, 0
    mine = [(min(size, texts - shard * size), is_done(shard)) for shard in range(part, -(-texts // size), parts)]
    return sum(n for n, _ in mine), sum(n for n, done in mine if done)


class Progress:
    """A bar on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, texts: int | None, done: int):
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=texts, initial=done, unit=" texts", unit_scale=True, dynamic_ncols=True, disable=not self._terminal
        )
        self._texts, self._before, self._done, self._tokens = texts, done, 0, 0
        self._start = self._told = time.monotonic()

    def done(self, texts: int, tokens: int) -> None:
        """So many more are encoded."""
        self._done += texts
        self._tokens += tokens
        now = time.monotonic()
        seconds = max(now - self._start, 1e-9)
        self._bar.set_postfix_str(f"{self._tokens / seconds:,.0f} tokens/s", refresh=False)
        self._bar.update(texts)
        if not self._terminal and now - self._told > 10:
            self._told = now
            self._tell(seconds)

    def close(self) -> None:
        """Leave the terminal tidy; say what it came to."""
        self._bar.close()
        if self._done:
            self._tell(time.monotonic() - self._start)

    def _tell(self, seconds: float) -> None:
        total = "" if self._texts is None else f" of {self._texts:,}"
        left = (self._texts or 0) - self._before - self._done
        said = f"{self._before + self._done:,}{total} texts, {self._done / seconds:,.0f} texts/s, "
        said += f"{self._tokens / seconds:,.0f} tokens/s"
        print(said + (f", {left / self._done * seconds:,.0f} s left" if left > 0 else ""), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(encode, EncodeConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
