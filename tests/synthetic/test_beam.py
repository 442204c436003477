"""The Beam pipeline gives the examples, rejections and counts of the local path."""

import json

import pytest

from e5jax.errors import UserError
from e5jax.synthetic import filters
from tests.synthetic.answered import ledger, mixed, rules


beam_pipeline = pytest.importorskip("e5jax.synthetic.beam_pipeline")
pytest.importorskip("apache_beam")


def lines(folder, name):
    return sorted(line for path in folder.glob(f"{name}*.jsonl") for line in path.open(encoding="utf-8"))


@pytest.mark.parametrize("near", [0.8, 1.0])
def test_beam_gives_what_one_machine_gives(near, tmp_path):
    rows = mixed(220)
    ledger(tmp_path / "ledger", rows[:100], rows[100:250], rows[250:])
    filters.run(tmp_path / "ledger", tmp_path / "local", rules(), near, 1)
    beam_pipeline.run(str(tmp_path / "ledger"), str(tmp_path / "beam"), rules(), near, "DirectRunner")
    for name in ("examples", "tally"):
        assert lines(tmp_path / "local", name) == lines(tmp_path / "beam", name)
    plain = lambda row: (row["reason"], row["key"], row["detail"].split(":")[0])  # Beam counts no lines
    found = [
        sorted(plain(json.loads(line)) for line in lines(tmp_path / side, "rejected")) for side in ("local", "beam")
    ]
    assert found[0] == found[1]
    reasons = {reason for reason, *_ in found[0]}
    assert {"duplicate", "given up", "damaged line"} <= reasons and ("near duplicate" in reasons) == (near < 1)


def test_options_of_a_runner_that_are_no_json_are_named(tmp_path, monkeypatch):
    (tmp_path / "options.json").write_text("[1]")
    monkeypatch.setenv("BEAM_OPTIONS", str(tmp_path / "options.json"))
    with pytest.raises(UserError, match=r"options\.json: not a JSON object"):
        beam_pipeline.run("ledger", str(tmp_path), rules(), 0.8, "DirectRunner")
