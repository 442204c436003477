import re
from pathlib import Path

import jax
import numpy as np
import pytest

from e5jax import vectors
from e5jax.search import top_k


PAGE = Path(__file__).parents[1] / "docs" / "vectors.md"
TEXTS, DIM = 2_000, 64
EXACT, APPROXIMATE, INT8, BINARY, SIGNS = 1.0, 0.9, 0.9, 0.6, 0.5

# What each block of the page must find of the exact ten, in the order of the page.
BLOCKS = {
    "best = [ids[i]": EXACT,
    "load_shards": EXACT,
    "IndexFlatIP": EXACT,
    "IndexHNSWFlat": APPROXIMATE,
    "IVF": APPROXIMATE,
    'dtype="f32"': APPROXIMATE,
    'dtype="i8"': INT8,
    "IndexBinaryFlat": BINARY,
    'dtype="b1"': SIGNS,
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Every block of the page run in turn -> ([(block, its names afterwards)], what top_k answers, corpus)."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((100, DIM))
    made = centres[rng.integers(0, 100, TEXTS + 20)] + 0.7 * rng.standard_normal((TEXTS + 20, DIM))
    unit = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    corpus, queries = unit[:TEXTS], unit[TEXTS:]
    folder = tmp_path_factory.mktemp("page")
    for name, dtype in (("vectors", "float32"), ("vectors-int8", "int8"), ("vectors-binary", "binary")):
        vectors.open_job(folder / name, {"dims": DIM, "dtype": dtype})
        for shard, start in enumerate(range(0, TEXTS, 800)):
            stored = vectors.quantized(corpus[start : start + 800], None, dtype)
            ids = [f"text {i}" for i in range(start, start + len(stored))]
            vectors.write_shard(folder / name, shard, ids, stored, {"tokens": 0, "truncated": 0})
        assert vectors.write_index(folder / name, 3)["count"] == TEXTS
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        names, after = {"queries": queries}, []
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(block, str(PAGE), "exec"), names)
            after.append((block, dict(names)))
        exact = top_k(queries, corpus, 10)
    return after, exact, corpus


def test_every_block_of_the_page_is_checked_here(searched):
    after, _, _ = searched
    assert len(after) == len(BLOCKS)
    for (block, _), word in zip(after, BLOCKS, strict=True):
        assert word in block


@pytest.mark.parametrize("block", range(len(BLOCKS)), ids=list(BLOCKS))
def test_the_page_finds_the_neighbours_that_top_k_finds(searched, block):
    after, (_, expected), _ = searched
    found, least = np.asarray(after[block][1]["found"]), list(BLOCKS.values())[block]
    assert found.shape == (20, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), expected.tolist(), strict=True)])
    print(f"recall {recall:.3f}")
    assert recall >= least


@pytest.mark.parametrize("block", [0, 1, 2, 3, 4, 5])
def test_scores_of_the_page_are_cosines(searched, block):
    after, _, corpus = searched
    names = after[block][1]
    cosines = np.einsum("qd,qnd->qn", names["queries"], corpus[np.asarray(names["found"], np.int64)])
    np.testing.assert_allclose(names["scores"], cosines, atol=1e-5)


def test_positions_on_the_page_lead_to_the_texts_own_ids(searched):
    after, (_, expected), _ = searched
    assert after[0][1]["best"] == [f"text {i}" for i in expected[0]]
