"""Exact top-k beside FAISS and PyTorch: `python -m benchmarks.top_k`.

All answer the same queries over the same unit vectors, in turns (A B C A B C), on the same number of threads. Arrays
are in place before the clock starts: FAISS's index is built, ours holds nothing prepared. Compiling is the first call,
which also checks that the answers agree. Libraries keep threads spinning after their work, which would take a core from
the next one: OpenMP and OpenBLAS are told to sleep instead, and every measurement waits a little first.

The products alone stand beside them: no search that takes all of them can be faster.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class TopKBenchmark:
    """Exact top-k beside FAISS and PyTorch, in turns, on the same threads."""

    corpus: int = 100_000
    dim: int = 768
    queries: int = 1_000
    k: int = 100
    rounds: int = 5
    threads: int = 2
    pause: float = 0.3
    """Seconds of rest before each measurement."""
    seed: int = 0
    output: str | None = None
    """JSON rows go to this file."""


def limit_threads(threads: int) -> None:
    """Hold this process to so many cores; before JAX, PyTorch and FAISS are imported, which read it then."""
    if hasattr(os, "sched_setaffinity"):  # XLA has no setting: it takes a thread for every core it may run on
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["OPENBLAS_THREAD_TIMEOUT"] = "4"


def searches(config: TopKBenchmark) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """-> (searches, each -> (scores, ids)), (products alone)), by name, over the same made-up unit vectors."""
    import faiss
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    import e5jax

    torch.set_num_threads(config.threads)
    faiss.omp_set_num_threads(config.threads)
    rng = np.random.default_rng(config.seed)

    def unit(count):
        vectors = rng.standard_normal((count, config.dim), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    queries, corpus = unit(config.queries), unit(config.corpus)
    index = faiss.IndexFlatIP(config.dim)
    index.add(corpus)
    queries_torch, corpus_torch = torch.from_numpy(queries), torch.from_numpy(corpus)
    queries_jax, corpus_jax = jnp.asarray(queries), jnp.asarray(corpus)
    low = queries_jax.astype(jnp.bfloat16), corpus_jax.astype(jnp.bfloat16)
    product = jax.jit(lambda q, c: jnp.einsum("QD,ND->QN", q, c, preferred_element_type=jnp.float32))
    scores = np.empty((config.queries, config.corpus), np.float32)
    return {
        "e5jax.top_k": lambda: e5jax.top_k(queries_jax, corpus_jax, config.k),
        "FAISS IndexFlatIP": lambda: index.search(queries, config.k),
        "torch.topk": lambda: torch.topk(queries_torch @ corpus_torch.T, config.k),
    }, {
        "float32 product alone, NumPy": lambda: np.matmul(queries, corpus.T, out=scores),
        "bfloat16 product alone, XLA": lambda: product(*low).block_until_ready(),
    }


def check_equal(answers: dict[str, tuple]) -> None:
    """FailedError where two searches disagree by more than rounding."""
    import numpy as np

    from e5jax.errors import FailedError

    (first, (scores, ids)), *others = ((name, map(np.asarray, answer)) for name, answer in answers.items())
    for name, (their_scores, their_ids) in others:
        off, same = np.abs(scores - their_scores).max(), (ids == their_ids).mean()
        if off > 1e-5 or same < 0.999:  # vectors nearer to each other than rounding may change places
            raise FailedError(f"{first} and {name} disagree: scores by {off:.1e}, {same:.2%} of the ids the same")
        print(f"{first} and {name} agree: scores within {off:.1e}, {same:.3%} of the ids in the same place")


def measure(cases: dict[str, Callable], rounds: int, pause: float) -> dict[str, list[float]]:
    """Seconds of every case in every round, one case after the other within a round."""
    seconds = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            time.sleep(pause)
            start = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def rows(seconds: dict[str, list[float]], ours: str, peers: list[str], alone: list[str]) -> list[dict]:
    """A row for each peer: medians in seconds, how many times faster ours is (`ratio`, and its range as `spread`).

    `limit`: the fastest of the products alone, in seconds.
    """
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    result = []
    for peer in peers:
        ratios = [theirs / mine for theirs, mine in zip(seconds[peer], seconds[ours], strict=True)]
        row = {"name": "C11", "against": peer, "ours": median[ours], "peer": median[peer]}
        row |= {"ratio": median[peer] / median[ours], "unit": "s", "limit": min(median[name] for name in alone)}
        result.append({**row, "spread": [min(ratios), max(ratios)]})
    return result


def main() -> int:
    """Measure, print a table, write rows."""
    config = tyro.cli(TopKBenchmark, prog="python -m benchmarks.top_k")
    limit_threads(config.threads)
    whole, alone = searches(config)
    print(f"{config.queries:,} queries, {config.corpus:,} x {config.dim}, k {config.k}, {config.threads} threads")
    check_equal({name: case() for name, case in whole.items()})
    for case in alone.values():
        case()
    seconds = measure({**whole, **alone}, config.rounds, config.pause)
    ours, *peers = whole
    print(f"{'':30}{'median s':>10}{'min s':>10}{'max s':>10}{'times ours':>12}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        times = median / statistics.median(seconds[ours])
        print(f"{name:30}{median:10.3f}{min(taken):10.3f}{max(taken):10.3f}{times:12.2f}")
    if config.output is not None:
        Path(config.output).write_text(json.dumps(rows(seconds, ours, peers, list(alone)), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
