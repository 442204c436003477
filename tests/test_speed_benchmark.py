"""benchmarks/run.py: its goals, its arithmetic, its batches, and the step that C10 compares with."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks import run, speed_data, speed_flops, speed_merged, speed_rows
from benchmarks.speed_bench import Bench, check_same
from benchmarks.speed_ours import counting, to_batch
from benchmarks.speed_train_rows import c8
from benchmarks.speed_worker import Worker
from e5jax.contrast import Contrast
from e5jax.errors import FailedError, UserError
from e5jax.flops import executed
from e5jax.layers import NO_DROPOUT
from e5jax.packing import BinShape, place
from e5jax.step import TrainState, make_step
from tests import tiny


SHAPE = BinShape(chunks=1, shards=1, rows=((16, 8),), slots=12)
COLUMNS = [np.array([5, 3, 7, 4]), np.array([9, 12, 6, 8]), np.array([10, 4, 11, 16])]


@pytest.fixture(scope="module")
def triples():
    texts = [[text.tolist() for text in tiny.texts(lengths, seed)] for seed, lengths in enumerate(COLUMNS)]
    return speed_data.Triples(**dict(zip(("queries", "positives", "negatives"), texts, strict=True)))


def test_the_rows_must_reach_what_the_project_promised():
    goals = {name: (goal.must, goal.aim) for name, goal in speed_rows.GOALS.items()}
    assert goals == {
        "C1a": (1.3, 1.8),
        "C1b": (2.0, 3.0),
        "C2": (1.0, 1.2),
        "C3": (1.3, 1.5),
        "C4": (1.1, 1.3),
        "C5": (1.8, 2.5),
        "C6-train": (0.65, 0.80),
        "C6-encode": (0.75, 0.85),
        "C7-train": (0.93, 0.98),
        "C7-encode": (0.95, 0.98),
        "C8": (1.35, 1.6),
        "C9": (1.10, 1.05),
        "C10": (2.0, 2.5),
        "G1": (10_000, 13_000),
        "G2": (0.45, 0.52),
        "G3": (45, 35),
        "G4": (30_000, 40_000),
        "G5": (4, 6),
        "G6": (1.5, 2.5),
    }
    assert speed_rows.SUITES["gpu"] == speed_rows.SUITES["tpu"] == ("G1", "G2", "G3", "G4", "G5", "G6")
    assert {name for name, goal in speed_rows.GOALS.items() if goal.at_most} == {"C9", "G3"}


def test_a_ratio_is_the_median_of_the_rounds_and_its_spread_their_ends():
    row = speed_rows.compared("C2", "tiny", 600, [2.0, 1.0, 3.0], [4.0, 1.0, 9.0], 900.0, "")
    assert (row.ours, row.peer, row.ratio, row.spread) == (300.0, 150.0, 2.0, (1.0, 3.0))
    assert row.met and row.unit == "tokens/s"


def test_a_row_without_a_peer_is_judged_by_its_figure_and_one_of_at_most_by_not_exceeding_it():
    judged = lambda name, value: speed_rows.measured(name, "tiny", [value], None, "").met
    assert [judged("C7-train", 0.92), judged("C7-train", 0.93)] == [False, True]
    assert [judged("C9", 1.10), judged("C9", 1.11)] == [True, False]
    assert speed_rows.absent("C8", "tiny", "why").met is None


def test_the_sides_take_turns():
    said = []
    sides = {name: lambda name=name: said.append(name) or float(len(said)) for name in "AB"}
    assert speed_rows.interleave(sides, 3, 0.0) == {"A": [1.0, 3.0, 5.0], "B": [2.0, 4.0, 6.0]}
    assert "".join(said) == "ABABAB"


def test_the_table_has_a_line_a_row_with_what_it_must_reach():
    rows = [speed_rows.measured("C9", "tiny", [1.2], 1.0, "a|b"), speed_rows.absent("C1a", "tiny", "not measured")]
    head, rule, *lines = speed_rows.table(rows).splitlines()
    assert {line.count("|") for line in (head, rule, *lines)} == {14}
    assert "1.20" in lines[0] and "≤ 1.10" in lines[0] and "| no |" in lines[0] and "not measured" in lines[1]


def test_a_row_that_breaks_says_so_and_the_others_go_on():
    told = []
    fine = lambda: speed_rows.measured("C9", "tiny", [1.0], 1.0, "")
    rows, broken = run.measure({"C2": lambda: 1 / 0, "C9": fine}, "tiny", lambda row, seconds: told.append(row.name))
    assert [row.note[:25] for row in rows] == ["failed: ZeroDivisionError", ""]
    assert broken == ["C2"] and told == ["C2", "C9"]


def test_only_rows_of_the_suite_can_be_asked_for():
    assert run.chosen(run.Speed(output="x", only=("C9", "C2"))) == ("C2", "C9")
    with pytest.raises(UserError, match="G1: the cpu suite has C1a"):
        run.chosen(run.Speed(output="x", only=("G1",)))


def test_without_a_gpu_its_rows_are_not_measured(tmp_path, capsys):
    assert run.run(run.Speed(suite="gpu", output=str(tmp_path / "gpu.json"))) == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["note"] for row in written["rows"]] == ["not measured: no GPU here"] * 6
    assert written["rows"][0].keys() >= {"name", "ours", "peer", "ratio", "unit", "limit", "spread", "must", "aim"}
    assert written["header"]["versions"]["jax"] == jax.__version__
    assert "| G6 |" in capsys.readouterr().out


def test_without_avx512_bf16_the_bfloat16_row_does_not_apply():
    row = c8(types.SimpleNamespace(dtypes=("float32",), model="tiny"))
    assert row.met is None and "not applicable" in row.note


def test_the_peer_is_timed_at_its_fastest_setting_in_its_faster_dtype():
    bench = object.__new__(Bench)
    bench.dtypes = ("float32", "bfloat16")
    speed = {1: 5.0, 8: 3.0, 32: 4.0}  # seconds by mini-batch; of a budget of 99 tokens 2

    def peer_step(batch, dtype, mini_batch, budget):
        seconds = (2.0 if budget else speed[mini_batch]) * (1.5 if dtype == "float32" else 1.0)
        return types.SimpleNamespace(facts={"seconds": seconds + 1}, run=lambda: seconds, which=(dtype, budget))

    bench.peer_step = peer_step
    case, said = bench.best_peer_step("batch", (1, 8, 32), (99,))
    assert case.which == ("bfloat16", 99) and said == ("bfloat16", "99 tokens at once")
    assert bench.best_peer_step("batch", (1, 8, 32), ())[1] == ("bfloat16", "mini-batch 8")
    bench.dtypes = ("float32",)
    assert bench.best_peer_step("batch", (32,), ())[1] == ("float32", "mini-batch 32")


def test_sides_that_compute_different_things_are_not_timed():
    case = lambda loss, norm: types.SimpleNamespace(facts={"loss": loss, "grad_norm": norm})
    assert "loss equal" in check_same(case(2.0, 1.0), case(2.00001, 1.0))
    for other in (case(2.0001, 1.0), case(2.0, 1.01), case(float("nan"), 1.0)):
        with pytest.raises(FailedError, match="different things"):
            check_same(case(2.0, 1.0), other)


def test_ms_marco_like_lengths_have_the_means_of_ms_marco():
    queries, positives, negatives = speed_data.marco_lengths(20_000, 512, 512, np.random.default_rng(0))
    assert abs(queries.mean() - 32) < 0.2 and queries.min() >= speed_data.INSTRUCTION_TOKENS + 4
    passages = np.concatenate([positives, negatives])
    assert abs(passages.mean() - 80) < 1
    longest_of_32 = passages.reshape(-1, 32).max(axis=1).mean()
    assert abs(passages.mean() / longest_of_32 - 0.45) < 0.03
    queries, positives, _ = speed_data.marco_lengths(20_000, 64, 128, np.random.default_rng(0))
    assert queries.max() <= 64 and positives.max() == 128


def test_a_batch_of_real_text_has_no_passage_twice_and_ends_every_text(data_dir):
    texts = speed_data.Texts(data_dir)
    batches = texts.xquad_batches(8, 3, seed=0)
    for batch in batches:
        passages = [tuple(text) for text in batch.positives + batch.negatives]
        assert len(set(passages)) == 16
        assert {text[0] for text in batch.queries} == {1} and {text[-1] for text in batch.queries} == {2}
    assert speed_data.typical(batches).tokens == sorted(batch.tokens for batch in batches)[1]
    cut = texts.cut(COLUMNS)
    assert cut.lengths.tolist() == np.concatenate(COLUMNS).tolist()
    assert len({tuple(text) for text in cut.positives + cut.negatives}) == 8


def test_both_sides_get_the_same_tokens(triples, tmp_path):
    pytest.importorskip("torch")
    from benchmarks.speed_peer import _padded

    path = speed_data.write_batch(tmp_path / "batch.json", triples, [triples.lengths])
    assert speed_data.read_batch(path)[0] == triples
    columns = triples.queries, triples.positives, triples.negatives
    theirs = [_padded(column) for column in columns]
    assert sum(int(column["attention_mask"].sum()) for column in theirs) == triples.tokens == 95
    batch = to_batch(triples, place(triples.lengths, SHAPE), SHAPE)
    bins = batch.bins
    assert np.count_nonzero(bins.segments_CST) == triples.tokens
    flat = lambda x: x.reshape(-1)
    for column, which in zip(theirs, (batch.query_Q, batch.passage_P[:4], batch.passage_P[4:]), strict=True):
        for row, mask, vector in zip(column["input_ids"], column["attention_mask"], which, strict=True):
            text = row[mask.bool()].tolist()
            stop = flat(bins.last_CSN)[vector] + 1
            assert flat(bins.tokens_CST)[stop - len(text) : stop].tolist() == text


@pytest.mark.scale
def test_the_merged_step_has_our_loss_and_our_gradients(triples):
    model = tiny.adapted(tiny.decoder(window=None))
    graphdef, params, frozen = nnx.split(model, nnx.LoRAParam, ...)
    descend = optax.sgd(1.0)
    ours = make_step(
        graphdef,
        descend,
        SHAPE.rows,
        temperature=0.1,
        contrast=Contrast(),
        matryoshka=(),
        distill=None,
        dtype=jnp.float32,
        kept=0,
        remat=False,
        dropout=NO_DROPOUT,
        seed=0,
    )
    state = TrainState(jnp.int32(0), params, descend.init(params))
    batch = to_batch(triples, place(triples.lengths, SHAPE), SHAPE)
    after, metrics = tiny.jit(ours)(None, state, frozen, batch)

    adapters, base = speed_merged.adapters_of(params), speed_merged.base_of(frozen)
    theirs = speed_merged.make_step(model.cfg, descend, 2.0, 0.1, jnp.float32)
    columns = speed_merged.pad(triples, (7, 16), 2)
    assert [tokens.shape for tokens, _ in columns] == [(2, 2, 7), (4, 2, 16)]
    (other, _), other_metrics = tiny.jit(theirs)((adapters, descend.init(adapters)), base, columns)
    assert metrics["loss"] > 0.1
    np.testing.assert_allclose(other_metrics["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(other_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-4)
    for name, pair in speed_merged.adapters_of(after.params).items():
        for mine, start, his in zip(pair, adapters[name], other[name], strict=True):
            assert np.abs(mine - start).max() > 1e-4
            np.testing.assert_allclose(his - start, mine - start, atol=2e-5, err_msg=name)


def test_flops_are_those_of_products_that_somebody_reads_times_the_turns_of_their_loops():
    x, w = jnp.ones((3, 4)), jnp.ones((5, 4, 4))

    def f(x, w):
        unread = x @ w[0]  # noqa: F841
        turn = lambda x, w: (jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x), None)
        return jax.lax.scan(turn, x, w)[0]

    assert executed(jax.jit(f).trace(x, w).jaxpr) == 5 * 2 * 3 * 4 * 4


def test_the_flops_of_a_module_s_jitted_functions_are_counted_call_by_call():
    module = types.SimpleNamespace(double=jax.jit(lambda x: x @ x), plain=lambda x: x)
    before = dict(vars(module))
    with counting(module) as flops:
        module.double(jnp.ones((2, 2))), module.double(jnp.ones((3, 3))), module.plain(1)
    assert flops == [2 * 2**3, 2 * 3**3] and vars(module) == before


def test_the_least_flops_are_two_a_weight_token_and_pass_but_for_the_last_layer():
    cfg = dataclasses.replace(tiny.CFG, layers=3)
    layer, keys_values = cfg.projection_weights / 3, 2 * 24 * 2 * 10
    assert speed_flops.least(cfg, 100, 100, passes=1) == 2 * 100 * cfg.projection_weights
    saved = 2 * 2 * (layer - keys_values) * 90
    assert speed_flops.least(cfg, 100, 10, passes=2) == 2 * 2 * 100 * cfg.projection_weights - saved


def test_a_worker_answers_and_says_what_went_wrong_and_that_it_died(tmp_path, monkeypatch):
    (tmp_path / "speed_test_worker.py").write_text(
        "import os, sys\n"
        "from benchmarks.speed_worker import serve\n"
        "def double(x): print('noise'); return 2 * x\n"
        "sys.exit(serve({'double': double, 'half': lambda x: x / 0, 'die': lambda: os._exit(3)}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{run.Path(__file__).parents[1]}")
    worker = Worker("speed_test_worker", tmp_path / "log")
    assert worker.ask("double", x=21) == 42
    with pytest.raises(FailedError, match="half: ZeroDivisionError"):
        worker.ask("half", x=1)
    assert worker.ask("double", x=1) == 2 and worker.peak_bytes() > 1e6
    with pytest.raises(FailedError, match="ended while it did die"):
        worker.ask("die")
    worker.close()
    assert not worker.alive and "noise" in (tmp_path / "log").read_text()
