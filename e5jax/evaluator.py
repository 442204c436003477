"""Held-out metrics of a model in training, and the table at the end."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from e5jax import heldout
from e5jax.encoder import embed, encode_tokens, silent
from e5jax.logbook import draw_curves, read_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Encodes the held-out sets with the current parameters and ranks them."""

    heldouts: Sequence[heldout.HeldOut]
    encode: Callable
    tokens: Sequence[tuple[list[np.ndarray], list[np.ndarray]]]

    @classmethod
    def make(cls, graphdef, heldouts, tokenizer, prompts, max_length, dim, shards, dtype) -> "Evaluator":
        """Tokenises the sets once."""

        def encode(params, frozen, texts):
            run = lambda bins, rows: embed(graphdef, (params, frozen), bins, rows, dtype)
            return encode_tokens(run, texts, dim, shards, False, silent)

        read = lambda texts: tokenizer.encode(texts, max_length)
        tokens = [(read(h.instructed), read([prompts.passage + text for text in h.passages])) for h in heldouts]
        return cls(heldouts=heldouts, encode=encode, tokens=tokens)

    def __call__(self, params, frozen) -> dict[str, float]:
        """`eval/NAME/METRIC` of every set, and `eval/METRIC`, their mean."""
        results = {}
        for set_, (queries, passages) in zip(self.heldouts, self.tokens, strict=True):
            vectors = self.encode(params, frozen, [*queries, *passages])
            scores = vectors[: len(queries)] @ vectors[len(queries) :].T
            results[set_.name] = heldout.ranking_metrics(scores, set_.relevant)
        metrics = {f"eval/{name}/{m}": value for name, r in results.items() for m, value in r.items()}
        for metric in next(iter(results.values())):
            metrics[f"eval/{metric}"] = float(np.mean([r[metric] for r in results.values()]))
        return metrics


def report(workdir: Path, heldouts: Sequence[heldout.HeldOut]) -> dict[str, float]:
    """Draw the curves; print and store the table of BM25, the untrained and the trained model."""
    rows = read_rows(workdir / "metrics.jsonl")
    bm25 = {h.name: heldout.ranking_metrics(heldout.bm25_scores(h), h.relevant)["ndcg@10"] for h in heldouts}
    draw_curves(rows, bm25, workdir / "curves.png")
    evals = [row for row in rows if "eval/ndcg@10" in row]
    if not evals:
        return {key: value for key, value in rows[-1].items() if key != "step"}
    first, last = evals[0], evals[-1]
    table = [
        f"| nDCG@10 | queries | passages | BM25 | step {first['step']} | step {last['step']} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for h in heldouts:
        key = f"eval/{h.name}/ndcg@10"
        table.append(
            f"| {h.name} | {len(h.queries):,} | {len(h.passages):,} | {bm25[h.name]:.4f} | {first[key]:.4f} | "
            f"{last[key]:.4f} |"
        )
    if len(heldouts) > 1:
        mean = float(np.mean(list(bm25.values())))
        table.append(f"| mean | | | {mean:.4f} | {first['eval/ndcg@10']:.4f} | {last['eval/ndcg@10']:.4f} |")
    text = "\n".join(table) + "\n"
    (workdir / "results.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\ncurves: {workdir / 'curves.png'}")
    return {key: value for key, value in last.items() if key != "step"}
