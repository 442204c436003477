"""What the CPU rows share: workers, batches on disk, rooflines, and the peer at its best."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks import speed_data
from benchmarks.speed_data import Texts, Triples
from benchmarks.speed_rows import Row, interleave, measured
from benchmarks.speed_worker import Case, Worker
from e5jax import hf
from e5jax.decoder import DecoderConfig
from e5jax.errors import FailedError


CHUNK = 2048  # tokens that either side's GradCache encodes at once, about
DEFAULT_MINI_BATCH = 32  # of CachedMultipleNegativesRankingLoss
WIDTHS = (512, 128)  # the product's default rows
PAUSE = 0.3  # seconds of rest before a side's turn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work the rows are, so that a step takes seconds."""

    real_triples: int
    """Of XQuAD: C1a, C1b."""
    uniform_triples: int
    """Of 128 tokens each: C2, C3, C6-train, C8."""
    marco_triples: int
    """MS-MARCO-like: C9 (and twice as many), C10."""
    passages: int
    """Of XQuAD in the corpus of C4, and half as many sentences of STS-B and of Tatoeba each."""
    queries: int
    """Of C5."""
    mini_batches: tuple[int, ...]
    """What the peer may choose from."""
    budgets: tuple[int, ...]
    """Or so many tokens at once."""


SIZES = {
    False: Sizes(
        real_triples=32,
        uniform_triples=8,
        marco_triples=32,
        passages=160,
        queries=256,
        mini_batches=(1, 2, 4, 8, 16, 32),
        budgets=(1024, 4096),
    ),
    True: Sizes(
        real_triples=64,
        uniform_triples=32,
        marco_triples=64,
        passages=240,
        queries=512,
        mini_batches=(1, 2, 4, 8, 16, 32),
        budgets=(512, 1024, 2048, 4096, 8192),
    ),
}


class Bench:
    """One model on this machine; workers start when they are first asked."""

    def __init__(self, model: str, sizes: Sizes, data: Path, folder: Path, rounds: int, dtypes: tuple[str, ...]):
        self.model, self.sizes, self.rounds, self.dtypes = model, sizes, rounds, dtypes
        self.texts = Texts(data)
        self.folder = folder / model
        self.folder.mkdir(parents=True, exist_ok=True)
        self.compiled: dict[str, float] = {}
        """Seconds that our cases took to compile."""
        self._workers: dict[str, Worker] = {}

    def worker(self, name: str, module: str) -> Worker:
        """The worker of that name, started anew where it has ended."""
        if name not in self._workers or not self._workers[name].alive:
            self._workers[name] = Worker(f"benchmarks.{module}", self.folder / f"{name}.log")
        return self._workers[name]

    @property
    def ours(self) -> Worker:
        """Our side."""
        return self.worker("ours", "speed_ours")

    @property
    def peer(self) -> Worker:
        """sentence-transformers."""
        return self.worker("peer", "speed_peer")

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()

    @functools.cached_property
    def weights(self) -> str:
        """Folder of the model that both sides load, written by transformers and PEFT."""
        folder = self.folder / "weights"
        if not (folder / "adapter").is_dir():
            self.texts.tokenizer.save(folder, speed_data.LONGEST)
            sizes = {**speed_data.MODELS[self.model], "vocabulary": speed_data.VOCABULARY}
            self.peer.ask("write_model", folder=str(folder), sizes=sizes, dtype="float32", seed=0)
        return str(folder)

    @functools.cached_property
    def cfg(self) -> DecoderConfig:
        """The shape of the model."""
        return hf.read_config(Path(self.weights)).architecture

    @functools.cache  # noqa: B019  lives as long as the command
    def real(self) -> tuple[str, Triples]:
        """-> (file, batch) of real text: the typical one of sixteen."""
        batches = self.texts.xquad_batches(self.sizes.real_triples, 16, seed=0)
        return self._written("real", speed_data.typical(batches), [batch.lengths for batch in batches])

    @functools.cache  # noqa: B019
    def uniform(self) -> tuple[str, Triples]:
        """-> (file, batch) of texts of 128 tokens."""
        batch = self.texts.cut(speed_data.uniform_lengths(self.sizes.uniform_triples, 128))
        return self._written("uniform", batch, [batch.lengths])

    @functools.cache  # noqa: B019
    def marco(self, triples: int) -> tuple[str, Triples]:
        """-> (file, batch) of MS-MARCO-like lengths, queries in 64 and passages in 128 tokens."""
        rng = np.random.default_rng(triples)
        sample = [speed_data.marco_lengths(triples, 64, 128, rng) for _ in range(16)]
        middle = sorted(sample, key=lambda columns: sum(map(np.sum, columns)))[len(sample) // 2]
        lengths = [np.concatenate(columns) for columns in sample]
        return self._written(f"marco-{triples}", self.texts.cut(middle), lengths)

    def _written(self, name, batch, sample):
        return speed_data.write_batch(self.folder / f"{name}.json", batch, sample), batch

    def our_step(self, batch: str, dtype: str, chunks: int, widths: tuple[int, ...]) -> Case:
        """A step of ours; one chunk keeps its activations."""
        arguments = dict(folder=self.weights, batch=batch, dtype=dtype, chunks=chunks, widths=widths)
        case = self.ours.case("train", remat=False, **arguments)
        self.compiled[f"step, {Path(batch).stem}, {dtype}, {chunks} chunks"] = case.facts["compile_seconds"]
        return case

    def peer_step(self, batch: str, dtype: str, mini_batch: int, budget: int | None) -> Case:
        """A step of the peer."""
        how = dict(mini_batch=mini_batch, budget=budget, device="cpu", attention="sdpa")
        return self.peer.case("train", folder=self.weights, batch=batch, dtype=dtype, **how)

    def best_peer_step(
        self, batch: str, mini_batches: tuple[int, ...], budgets: tuple[int, ...]
    ) -> tuple[Case, tuple[str, str]]:
        """-> (the peer's fastest step, (its dtype, its setting in words))."""
        dtype, setting = self._best_setting(batch, mini_batches, budgets)
        return self.peer_step(batch, dtype, *setting), (dtype, _words(*setting))

    @functools.cache  # noqa: B019
    def _best_setting(self, batch, mini_batches, budgets):
        """Each is tried once in the dtype that is faster, then the best two again, and the best in the other dtype."""
        settings = [(size, None) for size in mini_batches] + [(DEFAULT_MINI_BATCH, budget) for budget in budgets]
        middle = settings[len(mini_batches) // 2]
        first = {dtype: self.peer_step(batch, dtype, *middle) for dtype in self.dtypes}
        faster = min(first, key=lambda dtype: first[dtype].run())
        cases = {setting: self.peer_step(batch, faster, *setting) for setting in settings if setting != middle}
        cases[middle] = first[faster]
        again = sorted(cases, key=lambda setting: cases[setting].facts["seconds"])[:2]
        final = {(faster, setting): cases[setting].run() for setting in again}
        best = min(final, key=final.get)[1]
        final |= {(dtype, best): self.peer_step(batch, dtype, *best).run() for dtype in self.dtypes if dtype != faster}
        return min(final, key=final.get)

    @functools.cache  # noqa: B019
    def roofline(self, side: str, dtype: str) -> float:
        """FLOP/s of the best product of the model's own shapes and a large one, `side` ours or peer."""
        return self.worker(side, f"speed_{side}").ask("roofline", dtype=dtype, shapes=self.products, rounds=10)

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """Shapes [M, K] x [K, N] of the roofline."""
        dim, hidden = self.cfg.dim, self.cfg.hidden
        return [(CHUNK, dim, hidden), (CHUNK, hidden, dim), (512, 1024, 4096)]


def check_same(ours: Case, peer: Case) -> str:
    """What was found equal, in words. Raises FailedError where the losses of the first step differ."""
    mine, theirs = ours.facts, peer.facts
    loss = abs(mine["loss"] / theirs["loss"] - 1)
    norm = abs(mine["grad_norm"] / theirs["grad_norm"] - 1)
    if not (loss <= 1e-5 and norm <= 1e-3):
        raise FailedError(
            f"the sides compute different things: loss {mine['loss']:.7f} and {theirs['loss']:.7f}, "
            f"gradient norm {mine['grad_norm']:.6f} and {theirs['grad_norm']:.6f}"
        )
    return f"loss equal within {loss:.0e}, gradient norm within {norm:.0e}"


def utilization(name: str, bench: Bench, cases: Mapping[str, Case]) -> Row:
    """Matrix FLOP/s of our cases (by dtype) over the best product's in the same rounds; the worse dtype's row."""
    shares, said = {}, []
    for dtype, case in cases.items():
        products = lambda dtype=dtype: bench.ours.ask("roofline", dtype=dtype, shapes=bench.products, rounds=5)
        got = interleave({"case": case.run, "roofline": products}, bench.rounds, PAUSE)
        flops = case.facts["flops"]
        shares[dtype] = [flops / took / most for took, most in zip(got["case"], got["roofline"], strict=True)]
        took, most = statistics.median(got["case"]), statistics.median(got["roofline"])
        said.append(
            f"{dtype} {statistics.median(shares[dtype]):.2f}: {flops / 1e12:.2f} TFLOP in {took:.2f} s, "
            f"roofline {most / 1e9:.0f} GFLOP/s"
        )
    worse = min(shares.values(), key=statistics.median)
    return measured(name, bench.model, worse, 1.0, "; ".join(said))


def _words(mini_batch: int, budget: int | None) -> str:
    return f"mini-batch {mini_batch}" if budget is None else f"{budget} tokens at once"
