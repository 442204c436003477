"""What we export gives our vectors in the libraries that people serve with, and comes back bit for bit."""

import contextlib
import dataclasses
import json
import re
import resource
import shutil
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import e5jax
from e5jax import checkpoint, formats, heldout, hf, logbook, lora, model_card, models
from e5jax import export as exporting
from e5jax import workdir as workdirs
from e5jax.config import (
    DataConfig,
    ExportConfig,
    FromScratch,
    LoraConfig,
    Pretrained,
    TrainConfig,
)
from e5jax.decoder import Decoder
from e5jax.errors import FailedError, UserError
from e5jax.export import export
from e5jax.formats import INSTRUCT, Prompts, Tokenizer
from e5jax.packing import BinShape
from e5jax.records import Source
from e5jax.schedule import Schedule
from tests import tiny
from tests.sample import TRAIN


torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")
torch.set_num_threads(1)  # for models this small, threads cost more than they give

# heads · head_dim is dim: text-embeddings-inference takes the one from the other.
CFG = dataclasses.replace(tiny.FOLDER_CFG, head_dim=6, window=16)
MAX_LENGTH = 48
TASK = "Given a question | find what answers it."
SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
TEXTS = [
    "how do bees find their way home",
    "wie finden Bienen nach Hause?",
    "¿cómo vuelven las abejas a la colmena?",
    "как пчёлы находят дорогу домой",
    "蜜蜂怎样找到回家的路",
    "كيف يجد النحل طريقه إلى المنزل",
    "làm sao ong tìm được đường về nhà",
    "arılar evin yolunu nasıl bulur?",
    "",
    "long text about bees " * 60,
]


def config(workdir, **changes) -> TrainConfig:
    settings = dict(
        workdir=str(workdir),
        steps=2,
        batch_size=8,
        model=FromScratch(architecture=CFG),
        lora=LoraConfig(rank=2, alpha=4.0, targets=CFG.projections),
        data=DataConfig(train=(Source(path=str(TRAIN), rows=":40", task=TASK),), max_length=MAX_LENGTH),
    )
    return TrainConfig(**settings | changes)


def random(shapes, seed=0):
    """Arrays for a tree of shapes, without the compilation that a module's own start takes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), shapes)


def save_base(directory, tokenizer, cfg):
    """A pretrained decoder in Hugging Face's format."""
    state = random(jax.eval_shape(lambda: nnx.state(Decoder(cfg, jnp.float32, rngs=nnx.Rngs(0)))))
    kept = {"max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1}
    hf.save(nnx.to_pure_dict(state), cfg, "float32", directory, kept)
    tokenizer.save(directory)
    return directory


def make_run(settings: TrainConfig, tokenizer, cfg, base_digest) -> Path:
    """A run as training leaves it, by the functions that training leaves it with; what is trained is random."""

    def make():
        model = Decoder(cfg, jnp.float32, rngs=nnx.Rngs(1))
        if settings.lora:
            lora.adapt(model, settings.lora.rank, settings.lora.alpha, settings.lora.targets, jax.random.key(0))
        return nnx.split(model, nnx.LoRAParam if settings.lora else nnx.Param, ...)[1:]

    params, frozen = jax.eval_shape(make)
    workdir = Path(settings.workdir)
    facts = {"architecture": dataclasses.asdict(cfg), "data": "", "tokenizer": tokenizer.digest, "base": base_digest}
    schedule = Schedule(chunks=1, kept=1, remat=False)
    shape = BinShape(chunks=1, shards=1, rows=((MAX_LENGTH, 1),), slots=1)
    workdirs.create(workdir, settings, cfg, facts, schedule, shape, tokenizer, nnx.to_pure_dict(random(frozen)))
    with (
        contextlib.closing(logbook.Logbook(workdir, None, None, lambda: None)) as log,
        contextlib.closing(checkpoint.Checkpoints(workdir, {})) as checkpoints,
    ):
        log.write({"step": 0, "eval/unseen/ndcg@10": 0.125, "eval/ndcg@10": 0.125})
        for step in range(1, settings.steps + 1):
            log.write({"step": step, "loss": 1 / step, "tokens_per_second": 1000.0})
            log.write({"step": step, "eval/unseen/ndcg@10": step / 4, "eval/ndcg@10": step / 4})
            checkpoints.save(step, random(params, seed=step), {"count": jnp.int32(step)})
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def tokenizer():
    texts = heldout.all_texts([Source(path=TRAIN, rows=":100")], formats.PAPER, "stop")
    return formats.train_tokenizer(texts, CFG.vocab_size)


@pytest.fixture(scope="module")
def base(folder, tokenizer):
    return save_base(folder / "Tiny-Base", tokenizer, CFG)


@pytest.fixture(scope="module")
def run(folder, base, tokenizer):
    """Adapters on a pretrained base."""
    source = Pretrained(base=str(base), dtype="float32")
    return make_run(config(folder / "run", model=source), tokenizer, CFG, hf.digest(base))


@pytest.fixture(scope="module")
def own_run(folder, tokenizer):
    """Adapters on random weights, which lie in the run."""
    return make_run(config(folder / "own_run"), tokenizer, CFG, None)


@pytest.fixture(scope="module")
def whole_run(folder, tokenizer):
    """Every weight trained, from random ones."""
    return make_run(config(folder / "whole_run", lora=None), tokenizer, CFG, None)


@pytest.fixture(scope="module")
def exported(folder, run):
    """form -> folder."""
    return {form: exported_to(folder / form, run, form=form) for form in ("merged", "adapter")}


def exported_to(output, checkpoint, **settings) -> Path:
    assert export(ExportConfig(checkpoint=str(checkpoint), output=str(output), **settings)) == output
    return output


@pytest.fixture(scope="module")
def ours(run):
    return e5jax.Encoder.load(str(run))


def cosines(a, b):
    return np.sum(np.asarray(a) * np.asarray(b), axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def states(name, dtype=None):
    """Flat weights of a model as we open it."""
    return dict(nnx.to_flat_state(nnx.state(models.open_model(str(name), revision=None, mesh=None, dtype=dtype).model)))


def last_states(model, tokenizer, texts):
    """The way of transformers: unit vectors of the last token's state."""
    batch = tokenizer(texts, padding=True, padding_side="right", truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    last = batch["attention_mask"].sum(1) - 1
    return torch.nn.functional.normalize(hidden[torch.arange(len(last)), last], dim=1).numpy()


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_sentence_transformers_gives_our_vectors(exported, ours, form):
    model = sentence_transformers.SentenceTransformer(str(exported[form]), device="cpu")
    assert model.max_seq_length == MAX_LENGTH and model.similarity_fn_name == "cosine"
    bare, instructed = ours.encode(TEXTS), ours.encode(TEXTS, instruction=TASK)
    assert cosines(bare, instructed).min() < 0.999
    assert cosines(model.encode(TEXTS), bare).min() >= 0.99999
    assert cosines(model.encode_document(TEXTS), bare).min() >= 0.99999
    assert cosines(model.encode_query(TEXTS), instructed).min() >= 0.99999
    assert cosines(model.encode(TEXTS, prompt_name="query"), instructed).min() >= 0.99999
    assert cosines(model.encode(TEXTS, prompt=f"Instruct: {TASK}\nQuery: "), instructed).min() >= 0.99999
    searched = model.encode(TEXTS, prompt_name="web_search_query")
    assert cosines(searched, ours.encode(TEXTS, instruction=SEARCH)).min() >= 0.99999


def test_transformers_and_peft_give_our_vectors(exported, ours, base):
    expected = ours.encode(TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported["merged"])
    merged, report = transformers.AutoModel.from_pretrained(exported["merged"], output_loading_info=True)
    assert not any(report.values()), report
    assert cosines(last_states(merged.eval(), tokenizer, TEXTS), expected).min() >= 0.99999
    bare = transformers.AutoModel.from_pretrained(base).eval()
    assert cosines(last_states(bare, tokenizer, TEXTS), expected).min() < 0.999
    adapted = peft.PeftModel.from_pretrained(bare, exported["adapter"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported["adapter"])
    assert cosines(last_states(adapted, tokenizer, TEXTS), expected).min() >= 0.99999
    by_name = transformers.AutoModel.from_pretrained(exported["adapter"]).eval()
    assert cosines(last_states(by_name, tokenizer, TEXTS), expected).min() >= 0.99999


def test_the_same_on_real_text_in_eight_languages_with_mistral_s_tokenizer(tmp_path, data_dir):
    texts = []
    for language in ("en", "de", "es", "ru", "zh", "ar", "vi", "tr"):
        articles = json.loads((data_dir / "xquad" / f"{language}.json").read_text())["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]][::60]
        texts += [paragraph["qas"][0]["question"] for paragraph in paragraphs]
        texts += [paragraph["context"][:200] for paragraph in paragraphs]
    tokenizer, cfg = Tokenizer.load(data_dir / "mistral-tokenizer"), dataclasses.replace(CFG, vocab_size=32_000)
    source = Pretrained(base=str(save_base(tmp_path / "base", tokenizer, cfg)), dtype="float32")
    settings = config(tmp_path / "run", model=source)
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, max_length=512))
    make_run(settings, tokenizer, cfg, hf.digest(tmp_path / "base"))
    encoder = e5jax.Encoder.load(str(tmp_path / "run"))
    for form in ("merged", "adapter"):
        exported = exported_to(tmp_path / form, tmp_path / "run", form=form)
        model = sentence_transformers.SentenceTransformer(str(exported), device="cpu")
        assert cosines(model.encode(texts), encoder.encode(texts)).min() >= 0.99999
        instructed = encoder.encode(texts, instruction=TASK)
        assert cosines(model.encode(texts, prompt_name="query"), instructed).min() >= 0.99999
        theirs = transformers.AutoModel.from_pretrained(exported).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
        assert cosines(last_states(theirs, tokenizer, texts), encoder.encode(texts)).min() >= 0.99999
        ids = tokenizer(texts)["input_ids"]
        assert all(i[0] == 1 and i[-1] == 2 and 2 not in i[:-1] for i in ids)  # <s> and </s> of Mistral


def test_the_merged_export_and_the_adapter_agree(exported):
    merged, adapter = (e5jax.Encoder.load(str(exported[form])) for form in ("merged", "adapter"))
    np.testing.assert_allclose(adapter.encode(TEXTS), merged.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_an_export_opens_with_the_bits_that_the_run_has(exported, run, form):
    opened = [models.open_model(str(name), revision=None, mesh=None, dtype=None) for name in (run, exported[form])]
    theirs, mine = (dict(nnx.to_flat_state(nnx.state(o.model))) for o in opened)
    assert theirs.keys() == mine.keys()
    for path, weight in theirs.items():
        np.testing.assert_array_equal(weight[...], mine[path][...])
    for fact in ("dtype", "max_length", "prompts", "kept"):
        if (form, fact) != ("merged", "kept"):  # where ids and positions that the base does not state are written too
            assert getattr(opened[0], fact) == getattr(opened[1], fact), fact
    assert opened[0].tokenizer.digest == opened[1].tokenizer.digest


def test_exporting_an_export_changes_no_byte_of_the_model(exported, tmp_path):
    again = exported_to(tmp_path / "again", exported["merged"])
    for name in ("config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"):
        assert (again / name).read_bytes() == (exported["merged"] / name).read_bytes(), name


def test_what_sentence_transformers_saves_opens_here(exported, ours, tmp_path):
    sentence_transformers.SentenceTransformer(str(exported["merged"]), device="cpu").save(str(tmp_path / "saved"))
    encoder = e5jax.Encoder.load(str(tmp_path / "saved"))
    assert encoder.max_length == MAX_LENGTH and encoder.prompts == Prompts(query=INSTRUCT)
    np.testing.assert_array_equal(encoder.encode(TEXTS), ours.encode(TEXTS))


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_transformers_tokenizer_of_the_folder_marks_both_ends(exported, form):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported[form])
    assert tokenizer.model_max_length == MAX_LENGTH
    for ids in tokenizer(TEXTS, truncation=True)["input_ids"]:
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id and len(ids) <= MAX_LENGTH


NUMBER, INTEGER = (int, float), (int,)
# What the servers' readers of configuration insist on: file -> key -> type.
# text-embeddings-inference (Rust, serde): router/src/lib.rs ModelConfig, PoolConfig, NewSTConfig, STConfig;
# backends/candle/src/models/{mistral,qwen3}.rs. A key of another type, or missing, is an error there.
TEI = {
    "config.json": {
        "architectures": (list,),
        "model_type": (str,),
        "max_position_embeddings": INTEGER,
        "pad_token_id": INTEGER,
        "vocab_size": INTEGER,
        "hidden_size": INTEGER,
        "intermediate_size": INTEGER,
        "num_hidden_layers": INTEGER,
        "num_attention_heads": INTEGER,
        "num_key_value_heads": INTEGER,
        "head_dim": INTEGER,
        "hidden_act": (str,),
        "initializer_range": (float,),
        "attention_bias": (bool,),
        "rms_norm_eps": NUMBER,
        "rope_theta": NUMBER,
        "sliding_window": (int, type(None)),
        "eos_token_id": INTEGER,
    },
    "1_Pooling/config.json": {
        "pooling_mode_cls_token": (bool,),
        "pooling_mode_mean_tokens": (bool,),
        "pooling_mode_max_tokens": (bool,),
        "pooling_mode_mean_sqrt_len_tokens": (bool,),
        "pooling_mode_lasttoken": (bool,),
    },
    "sentence_bert_config.json": {"max_seq_length": INTEGER},
    "config_sentence_transformers.json": {"prompts": (dict,), "default_prompt_name": (str, type(None))},
    "tokenizer.json": {"post_processor": (dict,), "truncation": (type(None),), "padding": (type(None),)},
}
# vLLM: get_pooling_config and get_sentence_transformer_tokenizer_config of vllm/transformers_utils/config.py; its
# registry knows architectures by name; transformers reads the rest for it.
VLLM = {
    "config.json": {
        "architectures": (list,),
        "max_position_embeddings": INTEGER,
        "rope_parameters": (dict,),
        "dtype": (str,),
        "torch_dtype": (str,),
    },
    "1_Pooling/config.json": {"pooling_mode": (str,), "pooling_mode_lasttoken": (bool,)},
    "sentence_bert_config.json": {"max_seq_length": INTEGER, "do_lower_case": (bool,)},
    "tokenizer_config.json": {"tokenizer_class": (str,), "model_max_length": INTEGER, "eos_token": (str,)},
}


@pytest.mark.parametrize("schema", [TEI, VLLM], ids=["TEI", "vLLM"])
@pytest.mark.parametrize("source", ["run", "whole_run"])
def test_the_servers_readers_find_every_key_with_its_type(schema, source, request, tmp_path):
    folder = exported_to(tmp_path / "out", request.getfixturevalue(source))
    for name, keys in schema.items():
        content = json.loads((folder / name).read_text())
        for key, kinds in keys.items():
            assert type(content[key]) in kinds, (name, key, content.get(key))


def test_the_servers_readers_understand_what_is_meant(exported):
    folder = exported["merged"]
    read = lambda name: json.loads((folder / name).read_text())
    assert [(m["type"], m["path"]) for m in read("modules.json")] == [
        ("sentence_transformers.models.Transformer", ""),
        ("sentence_transformers.models.Pooling", "1_Pooling"),
        ("sentence_transformers.models.Normalize", "2_Normalize"),
    ]
    pooling = read("1_Pooling/config.json")
    assert next(key for key, value in pooling.items() if value is True) == "pooling_mode_lasttoken"  # older vLLM
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_lasttoken", "include_prompt"]
    config = read("config.json")
    assert config["architectures"] == ["MistralModel"] and config["max_position_embeddings"] == 4096
    assert config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]  # as TEI supposes of a Mistral
    assert all(isinstance(prompt, str) for prompt in read("config_sentence_transformers.json")["prompts"].values())
    names = {re.sub(r"\.\d+\.", ".N.", name) for name in load_file(folder / "model.safetensors")}
    assert {"embed_tokens.weight", "norm.weight", "layers.N.self_attn.q_proj.weight"} < names  # no "model." in front
    assert read("tokenizer.json")["post_processor"]["single"][-1] == {"SpecialToken": {"id": "</s>", "type_id": 0}}
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).stat().st_mode & 0o777 == (folder / "modules.json").stat().st_mode & 0o777


def test_a_run_from_random_weights_is_exported_whole(whole_run, tmp_path):
    folder = exported_to(tmp_path / "out", whole_run)
    config = json.loads((folder / "config.json").read_text())
    assert [config[key] for key in ("max_position_embeddings", "bos_token_id", "eos_token_id")] == [MAX_LENGTH, 0, 1]
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert cosines(model.encode(TEXTS), e5jax.Encoder.load(str(whole_run)).encode(TEXTS)).min() >= 0.99999
    with pytest.raises(UserError, match=r"trained every weight and has no adapter: export it with --form merged"):
        exported_to(tmp_path / "adapter", whole_run, form="adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_on_random_weights_brings_its_base_along(own_run, tmp_path):
    folder = exported_to(tmp_path / "out", own_run, form="adapter")
    expected = e5jax.Encoder.load(str(own_run)).encode(TEXTS)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert cosines(model.encode(TEXTS), expected).min() >= 0.99999
    assert (folder / "base" / "model.safetensors").read_bytes() == (own_run / "base/model.safetensors").read_bytes()
    moved = folder.rename(tmp_path / "moved")
    np.testing.assert_array_equal(e5jax.Encoder.load(str(moved)).encode(TEXTS), expected)


def test_an_adapter_on_another_run_brings_that_run_s_weights_along(run, tokenizer, tmp_path):
    source = Pretrained(base=str(run), dtype="float32")
    digest = models.open_model(str(run), revision=None, mesh=None, dtype=None).digest
    make_run(config(tmp_path / "run", model=source), tokenizer, CFG, digest)
    exported = exported_to(tmp_path / "out", tmp_path / "run", form="adapter")
    assert json.loads((exported / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        exported / "base"
    )
    assert json.loads((exported / "base" / "config.json").read_text())["max_position_embeddings"] == 4096
    for path, weight in states(run).items():
        np.testing.assert_array_equal(weight[...], states(exported / "base")[path][...])
    expected = e5jax.Encoder.load(str(tmp_path / "run")).encode(TEXTS)
    np.testing.assert_array_equal(e5jax.Encoder.load(str(exported)).encode(TEXTS), expected)


def test_an_adapter_to_a_base_on_the_hub_names_it_with_its_revision(run, tmp_path, hub):
    shutil.copytree(run, tmp_path / "run")
    stored = json.loads((run / "config.json").read_text())
    stored["model"] |= {"base": "someone/Model-1B", "revision": "abc"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    folder = exported_to(tmp_path / "out", tmp_path / "run", form="adapter", push_to_hub="me/adapter")
    config = peft.PeftConfig.from_pretrained(folder)
    assert (config.base_model_name_or_path, config.revision) == ("someone/Model-1B", "abc")
    assert Hub.calls[-1][:2] == ("upload", "me/adapter") and not (folder / "base").exists()
    assert huggingface_hub.ModelCard.load(folder / "README.md").data.base_model == "someone/Model-1B"


def test_one_step_of_a_run_is_exported_not_the_newest(run, exported, tmp_path):
    folder = exported_to(tmp_path / "out", run / "checkpoints" / "1")
    expected = states(run / "checkpoints" / "1")
    for path, weight in states(folder).items():
        np.testing.assert_array_equal(weight[...], expected[path][...])
    assert (folder / "model.safetensors").read_bytes() != (exported["merged"] / "model.safetensors").read_bytes()
    assert "| steps | 1 of 2 |" in (folder / "README.md").read_text()


def test_another_dtype_is_one_rounding_of_the_merged_weights(run, exported, tmp_path):
    folder = exported_to(tmp_path / "out", run, dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    exact = load_file(exported["merged"] / "model.safetensors")
    for name, weight in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(weight, exact[name].astype(jnp.bfloat16))


def test_weights_that_the_dtype_cannot_hold_are_refused_and_nothing_is_left(run, tmp_path, monkeypatch):
    opened = models.open_model

    def scaled(name, **settings):
        result = opened(name, **settings)
        result.model.norm.scale[...] *= 1e6
        return result

    monkeypatch.setattr(models, "open_model", scaled)
    with pytest.raises(UserError, match=r"norm\.weight holds NaN or infinity as float16"):
        exported_to(tmp_path / "out", run, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_nothing_of_the_user_s_is_written_over(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("out", "file"):
        with pytest.raises(UserError, match="is there already and not empty: choose another --output"):
            exported_to(tmp_path / name, run)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "mine.txt", "out"]
    (tmp_path / "empty").mkdir()
    assert (exported_to(tmp_path / "empty", run) / "modules.json").is_file()


def test_an_output_that_cannot_be_written_is_said_in_words(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file/out cannot be written: .*Not a directory"):
        exported_to(tmp_path / "file" / "out", run)


def test_a_full_disk_is_said_in_words_and_nothing_is_left(run, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # no file may grow beyond this
    try:
        with pytest.raises(UserError, match=r"out cannot be written: .*File too large"):
            exported_to(tmp_path / "out", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"form": "adapter", "dtype": "float16"}, "only --form merged has another dtype"),
        ({"results": "no-such.json"}, "no-such.json"),
        ({"push_to_hub": "just-a-name"}, "OWNER/NAME, not 'just-a-name'"),
        ({"push_to_hub": "me/model"}, "environment variable HF_TOKEN"),
    ],
    ids=str,
)
def test_a_mistake_is_found_before_anything_is_read(run, tmp_path, settings, said, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(models, "open_model", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(UserError, match=said):
        exported_to(tmp_path / "out", run, **settings)
    assert not list(tmp_path.iterdir())


def test_a_base_that_has_changed_since_gets_no_adapter(run, base, folder, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(base, tmp_path / "base")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["model"]["base"] = str(tmp_path / "base")
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    exported_to(tmp_path / "same", tmp_path / "run", form="adapter")
    (tmp_path / "base" / "config.json").write_text((base / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match="those files have changed since"):
        exported_to(tmp_path / "other", tmp_path / "run", form="adapter")


def test_a_model_that_is_no_run_has_no_adapter_to_export(base, tmp_path):
    with pytest.raises(UserError, match="--form adapter takes a run of e5jax"):
        exported_to(tmp_path / "out", base, form="adapter")


class Hub:
    """Stands in for HfApi and writes down what is asked of it."""

    calls: ClassVar = []
    files: ClassVar = [".gitattributes"]
    error: ClassVar = None

    def __init__(self, token):
        self.calls.append(("token", token))

    def create_repo(self, repository, **settings):
        self.calls.append(("create", repository, settings))

    def list_repo_files(self, repository):
        return self.files

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.error:
            raise self.error
        names = sorted(str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file())
        self.calls.append(("upload", repo_id, names))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    return monkeypatch


def test_a_push_uploads_the_folder_with_the_environment_s_token_and_never_shows_it(run, tmp_path, hub, capsys):
    folder = exported_to(tmp_path / "out", run, push_to_hub="me/model")
    token, create, upload = Hub.calls
    assert token == ("token", "hf_secret")
    assert create == ("create", "me/model", {"private": True, "exist_ok": True})
    assert upload[:2] == ("upload", "me/model") and {"README.md", "model.safetensors", "modules.json"} < set(upload[2])
    assert 'SentenceTransformer("me/model")' in (folder / "README.md").read_text()
    assert "hf_secret" not in "".join(capsys.readouterr())
    assert not any(b"hf_secret" in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_a_push_that_fails_says_so_without_the_token(run, tmp_path, hub):
    hub.setattr(Hub, "error", RuntimeError("401 for Bearer hf_secret"))
    with pytest.raises(FailedError, match="out is written, but me/model did not take it: 401 for Bearer HF_TOKEN"):
        exported_to(tmp_path / "out", run, push_to_hub="me/model")
    assert (tmp_path / "out" / "modules.json").is_file()


def test_a_repository_with_files_is_left_as_it_is(run, tmp_path, hub):
    hub.setattr(Hub, "files", [".gitattributes", "model.safetensors"])
    with pytest.raises(UserError, match=r"me/model holds files already \(model.safetensors, ...\)"):
        exported_to(tmp_path / "out", run, push_to_hub="me/model")
    assert [call[0] for call in Hub.calls] == ["token", "create"]


def test_an_adapter_whose_base_only_this_machine_has_is_not_pushed(run, own_run, tmp_path, hub):
    for workdir in (run, own_run):
        with pytest.raises(UserError, match="base is on this machine alone; push --form merged"):
            exported_to(tmp_path / "out", workdir, form="adapter", push_to_hub="me/model")
    assert not Hub.calls


RESULTS = {
    "model": "/home/somebody/run",
    "results": [
        {"task": "stsb-en", "metric": "cosine_spearman", "value": 0.8203, "n": 1379},
        {"task": "banking77", "metric": "accuracy", "value": 0.8004, "n": 3080},
    ],
    "versions": {"e5jax": "0.1.0", "mteb": "2.26.24"},
}


@pytest.fixture(scope="module")
def card(run, folder):
    """The model card of an export with measured results and a licence."""
    (folder / "results.json").write_text(json.dumps(RESULTS))
    settings = dict(results=str(folder / "results.json"), license="apache-2.0")
    return exported_to(folder / "with_card", run, **settings) / "README.md"


def test_the_card_s_metadata_are_the_hub_s(card):
    data = huggingface_hub.ModelCard.load(card).data
    assert data.library_name == "sentence-transformers" and data.pipeline_tag == "sentence-similarity"
    assert data.license == "apache-2.0" and data.base_model is None  # a folder is no name on the hub
    assert {"sentence-transformers", "feature-extraction", "e5jax"} <= set(data.tags)
    measured = [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results]
    assert measured == [("stsb-en", "cosine_spearman", 0.8203), ("banking77", "accuracy", 0.8004)]


def test_the_card_names_a_base_on_the_hub(run):
    stored = json.loads((run / "config.json").read_text())
    stored["model"] |= {"base": "mistralai/Mistral-7B-v0.1", "revision": "abc"}
    found = model_card.Run(workdir=run, step_dir=run / "checkpoints/2", config=stored, step=2, evaluations={})
    settings = dict(license=None, dim=24, max_length=48, dtype="bfloat16", prompts={}, run=found, results=None)
    for form, relation in (("merged", "finetune"), ("adapter", "adapter")):
        text = model_card.render(name="x", form=form, pooling="last", origin="mistralai/Mistral-7B-v0.1", **settings)
        data = huggingface_hub.ModelCard(text).data
        assert (data.base_model, data.base_model_relation) == ("mistralai/Mistral-7B-v0.1", relation)
        assert "license" not in data.to_dict() and "| start | `mistralai/Mistral-7B-v0.1`, revision abc |" in text


def test_the_card_says_what_the_run_s_files_say(card):
    text = card.read_text()
    for fact in (
        "Trained from `Tiny-Base` with adapters, now merged; weights in float32.",
        r"| `train.jsonl` | rows :40 | Given a question \| find what answers it. |",
        "| steps | 2 of 2 |",
        "| batch | 8 queries |",
        "temperature 0.02",
        "LoRA, rank 2, alpha 4, dropout 0.1, on q, k, v, o, gate, up, down",
        "| learning rate | 0.0001 after 100 steps, then linearly to 0 |",
        "| tokens of a text | at most 48 |",
        "| metric | step 0 | step 2 |",
        "| unseen/ndcg@10 | 0.1250 | 0.5000 |",
        "| stsb-en | cosine_spearman | 1,379 | 0.8203 |",
        "| trained with | e5jax 0.1.0 |",
        "| measured with | e5jax 0.1.0, mteb 2.26.24 |",
    ):
        assert fact in text, fact


def test_the_card_has_no_path_of_the_machine(card, exported, folder):
    for text in (card.read_text(), (exported["adapter"] / "README.md").read_text()):
        assert str(folder) not in text and "/home/somebody" not in text and str(Path(TRAIN).parent) not in text


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_the_card_s_examples_run_and_agree(exported, form, monkeypatch, capsys):
    monkeypatch.chdir(exported[form].parent)
    blocks = re.findall(r"```python\n(.*?)```", (exported[form] / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    names, vectors = {}, []
    for block in blocks:
        exec(block, names)
        vectors.append(names.get("vectors"))
    assert names["query"].startswith(f"Instruct: {TASK}\nQuery: ")
    for other in vectors[2:]:
        assert cosines(vectors[1], other).min() >= 0.99999


@pytest.mark.parametrize("content", ["{}", '{"results": [{"task": "x"}]}', "[]", '{"results": [1]}'])
def test_results_of_another_form_are_refused(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json"):
        model_card.read_results(tmp_path / "results.json")


def test_the_command_takes_words_and_exits_as_the_others_do(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert exporting.main(["--checkpoint", str(run), "--output", str(out), "--form", "adapter"]) == 0
    assert (out / "adapter_model.safetensors").is_file() and f"{out}: adapter, " in capsys.readouterr().out
    assert exporting.main(["--checkpoint", str(run), "--output", str(out)]) == 2
    assert "choose another --output" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        exporting.main(["--checkpoint", str(run), "--output", str(out), "--form", "onnx"])
    assert exit.value.code == 2


def test_scores_of_another_model_are_not_put_into_its_card(run, folder):
    scores = RESULTS | {"identity": {"digest": "0123"}}
    (folder / "others.json").write_text(json.dumps(scores))
    with pytest.raises(UserError, match="measured another model"):
        exported_to(folder / "not_its_scores", run, results=str(folder / "others.json"))
    assert not (folder / "not_its_scores").exists()
    own = RESULTS | {"identity": {"digest": e5jax.Encoder.load(str(run)).digest}}
    (folder / "own.json").write_text(json.dumps(own))
    exported_to(folder / "its_scores", run, results=str(folder / "own.json"))


def test_an_adapter_on_another_base_is_another_model(exported, folder, tokenizer):
    moved = shutil.copytree(exported["adapter"], folder / "on_another_base")
    save_base(folder / "Other-Base", tokenizer, CFG)
    settings = json.loads((moved / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(folder / "Other-Base")
    (moved / "adapter_config.json").write_text(json.dumps(settings))
    first = e5jax.Encoder.load(str(moved)).digest
    shutil.rmtree(folder / "Other-Base")
    save_base(folder / "Other-Base", tokenizer, dataclasses.replace(CFG, rope_theta=CFG.rope_theta * 2))
    assert e5jax.Encoder.load(str(moved)).digest != first


def test_nan_in_a_checkpoint_is_refused_by_name(folder, tokenizer, monkeypatch):
    broken = make_run(config(folder / "nan_run", lora=None), tokenizer, CFG, None)
    read = checkpoint.read_params

    def with_nan(step_dir, abstract):
        params = read(step_dir, abstract)
        params["embed"] = params["embed"].at[3, 2].set(np.nan)
        return params

    monkeypatch.setattr(checkpoint, "read_params", with_nan)
    with pytest.raises(UserError, match="embed holds NaN"):
        e5jax.Encoder.load(str(broken))
