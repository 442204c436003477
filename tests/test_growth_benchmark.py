"""benchmarks/growth.py: devices share the work, and the picture has all of it."""

import numpy as np
import pytest

from benchmarks import growth


@pytest.fixture(autouse=True)
def small(monkeypatch):
    sizes = {"dim": 16, "hidden": 24, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "vocab_size": 32_000}
    monkeypatch.setattr(growth, "MODEL", sizes)
    monkeypatch.setattr(growth, "CHUNK", 256)
    monkeypatch.setattr(growth, "TOKENS", 1024)


@pytest.mark.scale
def test_devices_share_the_work(monkeypatch):
    monkeypatch.setattr(growth, "lengths_of", lambda axis, size: (np.full(64, 16), np.full(64, 48)))
    one, four = growth.measure("devices", 1), growth.measure("devices", 4)
    assert four["computed"] == one["computed"] / 4
    assert four["bytes"] < one["bytes"]


def test_the_picture_has_a_column_for_each_axis_that_was_measured(tmp_path):
    row = {"bytes": 1e9, "computed": 100, "tokens": 100, "tokens_per_second": 5.0}
    growth.draw({"batch": {"128": row, "256": row}, "devices": {"1": row}}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
