"""The rows of the CPU suite that encode, and the useful share of both: C4, C5, C6-encode, C7."""

import json
import statistics

import numpy as np

from benchmarks import speed_data, speed_flops
from benchmarks.speed_bench import PAUSE, WIDTHS, Bench, utilization
from benchmarks.speed_rows import Row, compared, interleave, measured, ratios_of
from benchmarks.speed_worker import Case
from e5jax.errors import FailedError


BATCHES = (4, 8, 16, 32, 64)  # that the peer's encode may choose from
PAPER_BATCH, PAPER_CHUNKS = 2048, 32  # queries of a step and its chunks in configs/e5_mistral_7b.py
MOST_SHAPES = 8


def c4(bench: Bench) -> Row:
    """Encoder.encode beside SentenceTransformer.encode, which sorts by length."""
    return _beside_peer("C4", bench, corpus(bench), "")


def c5(bench: Bench) -> Row:
    """The same with an instruction in front of every query."""
    asked = [question for _, questions in bench.texts.xquad("en") for question in questions]
    return _beside_peer("C5", bench, asked[: bench.sizes.queries], speed_data.INSTRUCTION)


def corpus(bench: Bench) -> list[str]:
    """Passages of XQuAD, sentences of STS-B and Tatoeba."""
    passages = [passage for passage, _ in bench.texts.xquad("en")][: bench.sizes.passages]
    return passages + bench.texts.sentences(bench.sizes.passages // 2)


def our_encode(name: str, bench: Bench, texts: list[str], instruction: str, dtype: str) -> Case:
    """Our Encoder on these texts."""
    arguments = dict(texts=texts, instruction=instruction, dtype=dtype, vectors=_vectors(bench, name, "ours", dtype))
    case = bench.ours.case("encode", folder=bench.weights, **arguments)
    bench.compiled[f"encode, {name}, {dtype}"] = case.facts["compile_seconds"]
    return case


def _vectors(bench, name, side, dtype):
    return str(bench.folder / f"{name}-{side}-{dtype}.npy")


def _beside_peer(name, bench, texts, instruction):
    prompt = bench.texts.before_query if instruction else ""
    tokens = sum(map(len, bench.texts.ids([prompt + text for text in texts])))
    ours = {which: our_encode(name, bench, texts, instruction, which) for which in bench.dtypes}

    def peer(which, size):
        arguments = dict(texts=texts, prompt=prompt, dtype=which, vectors=_vectors(bench, name, "peer", which))
        return bench.peer.case("encode", folder=bench.weights, batch_size=size, **arguments)

    first = {which: peer(which, BATCHES[1]).run() for which in bench.dtypes}
    dtype = min(first, key=first.get)
    tried = {size: peer(dtype, size).facts["seconds"] for size in BATCHES}
    again = {size: peer(dtype, size).run() for size in sorted(tried, key=tried.get)[:2]}
    size = min(again, key=again.get)
    cosine = _lowest_cosine(*(_vectors(bench, name, side, "float32") for side in ("ours", "peer")))

    sides = {f"ours in {which}": case.run for which, case in ours.items()}
    seconds = interleave(sides | {"peer": peer(dtype, size).run}, bench.rounds, PAUSE)
    theirs, mine = seconds.pop("peer"), seconds.pop(f"ours in {dtype}")
    shared = len(bench.texts.ids([prompt])[0]) - 1 if prompt else 0  # with <s>; </s> comes behind the query
    work = speed_flops.least(bench.cfg, tokens - shared * (len(texts) - 1), len(texts), passes=1)
    said = [
        f"both {dtype}, peer batch {size}",
        *(f"{side} {statistics.median(ratios_of(took, theirs)):.2f} times" for side, took in seconds.items()),
        f"{tokens:,} tokens in {len(texts)} texts" + f", {shared} of each shared" * bool(shared),
        f"lowest cosine in float32 {cosine:.6f}",
    ]
    limit = bench.roofline("ours", dtype) * tokens / work
    return compared(name, bench.model, tokens, mine, theirs, limit, "; ".join(said))


def _lowest_cosine(ours: str, peer: str) -> float:
    """Of the same texts' vectors. Raises FailedError where it is too low."""
    lowest = float(np.min(np.sum(np.load(ours) * np.load(peer), axis=1)))
    if not lowest > 0.9999:
        raise FailedError(f"the sides compute different vectors: lowest cosine {lowest:.6f}")
    return lowest


def c6_encode(bench: Bench) -> Row:
    """The corpus of C4, in the dtype that does worse."""
    texts = corpus(bench)
    cases = {dtype: our_encode("C4", bench, texts, "", dtype) for dtype in bench.dtypes}
    return utilization("C6-encode", bench, cases)


def c7_train(bench: Bench) -> Row:
    """Batches of the paper's size, which a machine need not run to pack them; the worse of two kinds of lengths."""
    rng = np.random.default_rng(0)
    questions, passages = map(np.array, _real_lengths(bench))
    kinds = {
        "XQuAD": lambda: [rng.choice(questions, PAPER_BATCH), rng.choice(passages, 2 * PAPER_BATCH)],
        "MS-MARCO-like": lambda: speed_data.marco_lengths(PAPER_BATCH, speed_data.LONGEST, speed_data.LONGEST, rng),
    }
    shares = {}
    for kind, lengths in kinds.items():
        path = bench.folder / "lengths.json"
        path.write_text(json.dumps([np.concatenate(lengths()).tolist() for _ in range(24)]))
        arguments = dict(lengths=str(path), chunks=PAPER_CHUNKS, widths=WIDTHS)
        shares[kind] = bench.ours.ask("train_share", **arguments)
    note = ", ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
    note += f"; {PAPER_BATCH:,} triples a step in {PAPER_CHUNKS} chunks of one shape, made from 12 other batches"
    return measured("C7-train", bench.model, [min(shares.values())], 1.0, note)


def c7_encode(bench: Bench) -> Row:
    """Texts of all XQuAD's languages, and as many MS-MARCO-like ones; the worse of the two."""
    rng = np.random.default_rng(0)
    questions, passages = _real_lengths(bench)
    kinds = {
        "XQuAD": questions + passages,
        "MS-MARCO-like": np.concatenate(
            speed_data.marco_lengths(4096, speed_data.LONGEST, speed_data.LONGEST, rng)
        ).tolist(),
    }
    shares, shapes = {}, {}
    for kind, lengths in kinds.items():
        path = bench.folder / "lengths.json"
        path.write_text(json.dumps(lengths))
        shares[kind], shapes[kind] = bench.ours.ask("encode_share", lengths=str(path))
    if max(shapes.values()) > MOST_SHAPES:
        raise FailedError(f"{shapes} compiled shapes, and at most {MOST_SHAPES} may be")
    note = ", ".join(f"{kind} {share:.3f} in {shapes[kind]} shapes" for kind, share in shares.items())
    return measured("C7-encode", bench.model, [min(shares.values())], 1.0, note)


def _real_lengths(bench):
    """Tokens of instructed questions and of passages, all languages of XQuAD."""
    questions, passages = [], []
    for language in speed_data.LANGUAGES:
        paragraphs = bench.texts.xquad(language)
        asked = [bench.texts.before_query + question for _, of_it in paragraphs for question in of_it]
        questions += map(len, bench.texts.ids(asked))
        passages += map(len, bench.texts.ids([passage for passage, _ in paragraphs]))
    return questions, passages


ENCODE_ROWS = {"C4": c4, "C5": c5, "C6-encode": c6_encode, "C7-train": c7_train, "C7-encode": c7_encode}
