"""The rows of the CPU suite that train: C1, C2, C3, C6-train, C8, C9, C10."""

import statistics

from benchmarks import speed_data, speed_flops
from benchmarks.speed_bench import CHUNK, DEFAULT_MINI_BATCH, PAUSE, WIDTHS, Bench, check_same, utilization
from benchmarks.speed_rows import Row, absent, compared, interleave, measured, ratios_of
from benchmarks.speed_worker import Case, Worker


PADS = (64, 128)  # tokens that C10's queries and passages are padded to: those of tevax's published MS MARCO run


def c1a(bench: Bench) -> Row:
    """Real lengths, the peer at its best."""
    batch = bench.real()
    best = bench.best_peer_step(batch[0], bench.sizes.mini_batches, bench.sizes.budgets)
    return beside_peer("C1a", bench, batch, WIDTHS, _best_chunks(bench, batch, best[1][0]), *best)


def c1b(bench: Bench) -> Row:
    """Real lengths, the peer as it comes."""
    batch = bench.real()
    best = bench.best_peer_step(batch[0], (DEFAULT_MINI_BATCH,), ())
    return beside_peer("C1b", bench, batch, WIDTHS, _best_chunks(bench, batch, best[1][0]), *best)


def c2(bench: Bench) -> Row:
    """No padding anywhere, the same schedule."""
    return _uniform(bench, "C2", cached=True)


def c3(bench: Bench) -> Row:
    """No padding anywhere, ours keeps its activations."""
    return _uniform(bench, "C3", cached=False)


def _uniform(bench, name, cached):
    path, triples = batch = bench.uniform()
    sizes = tuple(size for size in bench.sizes.mini_batches if 4 <= size <= bench.sizes.uniform_triples)
    chunks = _chunks(triples) if cached else 1
    return beside_peer(name, bench, batch, (128,), chunks, *bench.best_peer_step(path, sizes, ()))


def _chunks(triples: speed_data.Triples) -> int:
    """Of our GradCache."""
    return max(2, round(triples.tokens / CHUNK))


def _best_chunks(bench, batch, dtype):
    """Of our two schedules, activations kept or GradCache, the one whose second turn is faster."""
    path, triples = batch
    return min((1, _chunks(triples)), key=lambda chunks: bench.our_step(path, dtype, chunks, WIDTHS).run())


def beside_peer(
    name: str,
    bench: Bench,
    batch: tuple[str, speed_data.Triples],
    widths: tuple[int, ...],
    chunks: int,
    peer: Case,
    setting: tuple[str, str],
) -> Row:
    """Our step of so many chunks beside a step of the peer, whose (dtype, setting) is given.

    The ratio is that of ours in the peer's dtype; what ours does otherwise stands in the note.
    """
    path, triples = batch
    dtype, words = setting
    ours = {which: bench.our_step(path, which, chunks, widths) for which in bench.dtypes}
    same = check_same(ours["float32"], bench.peer_step(path, "float32", DEFAULT_MINI_BATCH, None))
    sides = {f"ours in {which}": case.run for which, case in ours.items()}
    if chunks == 1:
        cached = _chunks(triples)
        sides[f"ours as GradCache of {cached} chunks"] = bench.our_step(path, dtype, cached, widths).run
    seconds = interleave(sides | {"peer": peer.run}, bench.rounds, PAUSE)
    theirs = seconds.pop("peer")
    mine = seconds.pop(f"ours in {dtype}")
    work = speed_flops.least(bench.cfg, triples.tokens, len(triples.lengths), passes=2 if chunks == 1 else 3)
    said = [
        f"both {dtype}, peer {words}, ours in {ours[dtype].facts['chunks']} chunks",
        *(f"{side} {statistics.median(ratios_of(took, theirs)):.2f} times" for side, took in seconds.items()),
        f"{triples.tokens:,} tokens in {len(triples.lengths)} texts, {statistics.median(mine):.2f} s",
        f"{triples.tokens / ours[dtype].facts['computed']:.0%} of what ours computes is useful",
        same,
    ]
    limit = bench.roofline("ours", dtype) * triples.tokens / work
    return compared(name, bench.model, triples.tokens, mine, theirs, limit, "; ".join(said))


def c6_train(bench: Bench) -> Row:
    """The step of C3, in the dtype that does worse."""
    path, _ = bench.uniform()
    return utilization("C6-train", bench, {dtype: bench.our_step(path, dtype, 1, (128,)) for dtype in bench.dtypes})


def c8(bench: Bench) -> Row:
    """The step of C3 in both dtypes."""
    if "bfloat16" not in bench.dtypes:
        return absent("C8", bench.model, "not applicable: this CPU has no AVX512_BF16")
    path, triples = bench.uniform()
    sides = {dtype: bench.our_step(path, dtype, 1, (128,)).run for dtype in bench.dtypes}
    seconds = interleave(sides, bench.rounds, PAUSE)
    work = speed_flops.least(bench.cfg, triples.tokens, len(triples.lengths), passes=2)
    limit = bench.roofline("ours", "bfloat16") * triples.tokens / work
    note = f"the products alone: {bench.roofline('ours', 'bfloat16') / bench.roofline('ours', 'float32'):.2f} times"
    tokens = triples.tokens
    return compared("C8", bench.model, tokens, seconds["bfloat16"], seconds["float32"], limit, f"peer: float32; {note}")


def c9(bench: Bench) -> Row:
    """Peaks of two processes, each with chunks of the same size; what compiling took is left out where it can be."""
    peaks, said = [], []
    chunks = _chunks(bench.marco(bench.sizes.marco_triples)[1])
    for times in (1, 2):
        path, batch = bench.marco(times * bench.sizes.marco_triples)
        worker = Worker("benchmarks.speed_ours", bench.folder / "memory.log")
        try:
            arguments = dict(dtype="float32", chunks=times * chunks, remat=False, widths=(128,))
            case = worker.case("train", folder=bench.weights, batch=path, **arguments)
            reset = worker.ask("reset_peak")
            for _ in range(2):
                case.run()
            peaks.append(worker.peak_bytes())
        finally:
            worker.close()
        said.append(f"{batch.tokens:,} tokens in {case.facts['chunks']} chunks {peaks[-1] / 1e9:.3f} GB")
    said += ["float32", "of the steps alone" if reset else "compiling included"]
    return measured("C9", bench.model, [peaks[1] / peaks[0]], 1.0, "; ".join(said))


def c10(bench: Bench) -> Row:
    """Beside the merged-weight step, padded; each in the dtype that is faster for the other trainer."""
    path, triples = bench.marco(bench.sizes.marco_triples)
    other = bench.worker("merged", "speed_ours")
    arguments = dict(folder=bench.weights, batch=path, pads=PADS, texts=CHUNK // PADS[1])
    merged = {dtype: other.case("merged", dtype=dtype, **arguments) for dtype in bench.dtypes}
    took = {dtype: case.run() for dtype, case in merged.items()}
    dtype = min(took, key=took.get)
    free = {which: bench.our_step(path, which, 1, (128,)) for which in bench.dtypes}
    same = check_same(free["float32"], merged["float32"])
    chunks = _chunks(triples)
    cached = f"ours as GradCache of {chunks} chunks"
    sides = {f"ours in {which}": case.run for which, case in free.items()}
    sides |= {cached: bench.our_step(path, dtype, chunks, (128,)).run, "peer": merged[dtype].run}
    seconds = interleave(sides, bench.rounds, PAUSE)
    theirs, mine = seconds.pop("peer"), seconds.pop(f"ours in {dtype}")
    work = speed_flops.least(bench.cfg, triples.tokens, len(triples.lengths), passes=2)
    said = [
        f"both {dtype}, padded to {PADS[0]} and {PADS[1]}",
        *(f"{side} {statistics.median(ratios_of(took, theirs)):.2f} times" for side, took in seconds.items()),
        f"{triples.tokens:,} tokens, {merged[dtype].facts['computed']:,} with its padding",
        f"{merged[dtype].facts['flops'] / free[dtype].facts['flops']:.2f} times our FLOPs",
        same,
    ]
    limit = bench.roofline("ours", dtype) * triples.tokens / work
    return compared("C10", bench.model, triples.tokens, mine, theirs, limit, "; ".join(said))


TRAIN_ROWS = {"C1a": c1a, "C1b": c1b, "C2": c2, "C3": c3, "C6-train": c6_train, "C8": c8, "C9": c9, "C10": c10}
