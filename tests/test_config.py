"""Config files and the command line: every file loads, every mistake exits with 2 and says what to do."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from e5jax import command
from e5jax import config as configs
from e5jax import train as training
from e5jax.errors import UserError
from e5jax.synthetic.config import PackageConfig, SynthesizeConfig
from tests.sample import HELDOUT, TRAIN


pytestmark = pytest.mark.usefixtures("quickly_compiled")


ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
KINDS = {"synthesize": SynthesizeConfig, "package": PackageConfig}
QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def run(capfd, *argv):
    """-> (exit status, what a person reads, on one line)."""
    try:
        status = training.main(list(argv))
    except SystemExit as exit_:
        status = exit_.code
    out, err = capfd.readouterr()
    return status, " ".join((out + err).replace("│", " ").split())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_loads_and_is_plain_json(path, monkeypatch):
    monkeypatch.setenv("E5JAX_DATA", "/data")
    config = command.load_config(str(path))
    kind = KINDS.get(path.stem.split("_")[0], configs.TrainConfig)
    assert isinstance(config, kind)
    assert json.loads(json.dumps(command.to_json(config))) == command.to_json(config)
    assert command.parse(["--config", str(path)], "command", kind, needs_file=True) == config


def test_the_paper_s_numbers_stand_in_its_config():
    config = command.load_config(str(ROOT / "configs" / "e5_mistral_7b.py"))
    assert (config.batch_size, config.temperature, config.data.max_length) == (2048, 0.02, 512)
    assert (config.optim.peak_lr, config.optim.warmup_steps, config.optim.weight_decay) == (1e-4, 100, 0.1)
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (16, 32.0, 0.1)
    assert config.lora.targets is None  # all seven projections
    assert config.steps == round(1_800_000 / 2048) and len(config.data.train) == 15


def test_overrides_reach_every_depth():
    argv = ["--config", QUICKSTART, "--steps", "7", "--optim.peak-lr=2e-4", "--model.architecture.window", "32"]
    config = command.parse(
        [*argv, "--data.train.0.path", "mine.jsonl", "--eval-every", "3"], "train", configs.TrainConfig, needs_file=True
    )
    assert (config.steps, config.optim.peak_lr, config.model.architecture.window) == (7, 2e-4, 32)
    assert config.data.train[0].path == "mine.jsonl" and config.eval_every == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--stepz", "3"], "--steps"),
        (["--optim.peak_lrr=1e-3"], "--optim.peak-lr"),
        (["--steps", "many"], "invalid"),
        (["--steps", "-1"], "steps must be positive, got -1"),
        (["--optim.peak-lr", "-1"], "peak_lr must be positive"),
        (["--data.on-bad-record", "ignore"], "stop"),
        (["--packing.widths", "64"], "hold no text of data.max_length 128"),
        (["--profile-steps", "5"], "A:B"),
        (["--temperature", "0"], "temperature must be positive"),
        (["--mesh", "3", "1", "1"], "does not fit 8 devices"),
        (["--batch-size", "12"], "not a multiple of the 8 devices"),
        (["--data.train.0.path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--batch-size", "1000"], "is more than the 556 records"),
        (["--model.architecture.vocab-size", "100"], "vocab_size"),
        (["--init-from", "/nowhere"], "no checkpoint"),
    ],
)
def test_a_wrong_word_exits_with_2_and_says_what_to_do(capfd, tmp_path, argv, said):
    data = ["--data.train.0.path", TRAIN, "--eval.0.sources.0.path", HELDOUT, "--data.cache", str(tmp_path / "cache")]
    status, text = run(capfd, "--config", QUICKSTART, "--workdir", str(tmp_path / "run"), *data, *argv)
    assert status == 2
    assert said in text and "Traceback" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return dataclasses.replace(q.get_config(), stepz=3)", "stepz"),
        ("return dataclasses.replace(q.get_config(), steps=0)", "steps must be positive"),
        ("return dataclasses.replace(q.get_config(), lora=LoraConfig(targets=('q_proj',)))", "q_proj"),
        ("return dataclasses.replace(q.get_config(), lora=LoraConfig(rank=0))", "rank must be positive"),
    ],
)
def test_a_mistake_in_a_config_file_exits_with_2_and_names_it(capfd, tmp_path, body, said):
    path = tmp_path / "mine.py"
    path.write_text(
        f"import dataclasses, sys\nsys.path.insert(0, {str(ROOT / 'configs')!r})\nimport quickstart as q\n"
        f"from e5jax.config import LoraConfig\ndef get_config():\n    {body}\n"
    )
    status, text = run(capfd, "--config", str(path), "--workdir", str(tmp_path / "run"))
    assert status == 2 and said in text and "Traceback" not in text


def test_a_missing_config_file_is_named_with_its_neighbour(capfd):
    status, text = run(capfd, "--config", str(ROOT / "configs" / "quickstrat.py"))
    assert status == 2 and "did you mean" in text and "quickstart.py" in text


def test_no_config_prints_the_usage(capfd):
    status, text = run(capfd)
    assert status == 2 and "--config FILE.py" in text


def test_help_is_the_docstrings(capfd):
    status, text = run(capfd, "--config", QUICKSTART, "--help")
    assert status == 0
    for words in ("Queries a step, over all devices", "--optim.peak-lr", "--data.max-negatives"):
        assert words in text


def test_a_broken_record_is_named_by_file_and_line_and_can_be_skipped(capfd, tmp_path):
    path = tmp_path / "mine.jsonl"
    good = '{"query": "a %d", "positive": "b %d"}\n'
    path.write_text(good % (1, 1) + '{"query": "", "positive": "x"}\n' + "".join(good % (i, i) for i in range(20)))
    argv = ["--config", QUICKSTART, "--workdir", str(tmp_path / "run"), "--data.train.0.path", str(path)]
    argv += ["--eval.0.sources.0.path", HELDOUT, "--eval.0.sources.0.split", "train"]
    argv += ["--data.cache", str(tmp_path / "cache"), "--batch-size", "16", "--steps", "1", "--packing.chunks", "1"]
    status, text = run(capfd, *argv)
    assert status == 2
    assert f"{path}:2" in text and "query" in text and "--data.on-bad-record skip" in text
    assert not (tmp_path / "run").exists()
    status, text = run(capfd, *argv, "--data.on-bad-record", "skip")
    assert status == 0 and "left out 1 bad record" in text


def test_xquad_without_its_data_says_what_to_set(capfd, monkeypatch):
    monkeypatch.delenv("E5JAX_DATA", raising=False)
    status, text = run(capfd, "--config", str(ROOT / "configs" / "xquad_cpu.py"))
    assert status == 2 and "set E5JAX_DATA" in text


def test_a_model_that_cannot_be_found_is_a_sentence(capfd, tmp_path, monkeypatch):
    (tmp_path / "cfg.py").write_text(
        f"import dataclasses, sys\nsys.path.insert(0, {str(ROOT / 'configs')!r})\nimport quickstart_lora as q\n"
        "from e5jax.config import Pretrained\n"
        "def get_config():\n    return dataclasses.replace(q.get_config(), model=Pretrained(base='/nowhere/model'))\n"
    )
    data = ["--data.train.0.path", TRAIN, "--eval.0.sources.0.path", HELDOUT]
    status, text = run(capfd, "--config", str(tmp_path / "cfg.py"), "--workdir", str(tmp_path / "run"), *data)
    assert status == 2 and "/nowhere/model" in text


def test_importing_the_package_brings_in_no_jax():
    code = "import sys, e5jax; assert 'jax' not in sys.modules and 'torch' not in sys.modules; print(e5jax.__version__)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip()


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        command.load_config(QUICKSTART).steps = 3


def test_a_source_with_a_weight_beside_one_without_is_refused():
    from e5jax.config import DataConfig
    from e5jax.records import Source

    with pytest.raises((ValueError, UserError), match="all sources a weight, or none"):
        DataConfig(train=(Source(path="a.jsonl", weight=2.0), Source(path="b.jsonl")))


def test_a_token_cache_in_a_bucket_is_refused():
    from e5jax.config import DataConfig
    from e5jax.records import Source

    with pytest.raises((ValueError, UserError), match="name a folder here"):
        DataConfig(train=(Source(path="a.jsonl"),), cache="gs://bucket/cache")
