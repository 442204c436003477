"""Folders of sentence-transformers: what their files say, in every spelling, and what is refused by name."""

import json
import shutil

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import e5jax
from e5jax import formats, hf, lora, peft_format, st_format
from e5jax.errors import UserError
from e5jax.formats import INSTRUCT, Prompts
from tests import tiny


VOCABULARY = 300  # bytes, both ends, some pieces
SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
OLD = {
    "word_embedding_dimension": 24,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": True,
    "include_prompt": True,
}
NEW = {"embedding_dimension": 24, "pooling_mode": "lasttoken", "include_prompt": True}
OLD_TYPES = [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")]
NEW_TYPES = [
    "sentence_transformers.base.modules.transformer.Transformer",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "sentence_transformers.base.modules.normalize.Normalize",
]
PATHS = ["", "1_Pooling", "2_Normalize"]
TEXTS = ["bees find their way home", "", "слово", "三个字"]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def st_folder(directory, types=OLD_TYPES, paths=PATHS, pooling=OLD, settings=None, bert=None):
    """The files alone, without a model."""
    modules = [
        {"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(zip(paths, types, strict=True))
    ]
    write_json(directory / "modules.json", modules)
    write_json(directory / "1_Pooling" / "config.json", pooling)
    if settings is not None:
        write_json(directory / "config_sentence_transformers.json", settings)
    if bert is not None:
        write_json(directory / paths[0] / "sentence_bert_config.json", bert)
    return directory


def save_model(directory, model=None):
    """config.json and weights; -> the model."""
    model = model or tiny.decoder(vocab_size=VOCABULARY)
    hf.save(nnx.to_pure_dict(nnx.state(model)), model.cfg, "float32", directory, {"max_position_embeddings": 77})
    return model


def tokenizer():
    return formats.train_tokenizer(["bees find their way home by the sun"], VOCABULARY)


def test_what_is_written_is_read_again(tmp_path):
    named = st_format.name_prompts(Prompts(query=INSTRUCT), [])
    st_format.write(tmp_path, dim=24, pooling="last", max_length=48, prompts=named)
    files = st_format.read(tmp_path)
    assert files == st_format.STFiles(
        transformer=tmp_path,
        pooling="last",
        normalize=True,
        max_length=48,
        prompts=Prompts(query="Instruct: {task}\nQuery: "),
    )


@pytest.mark.parametrize("types", [OLD_TYPES, NEW_TYPES], ids=["old", "new"])
@pytest.mark.parametrize("pooling", [OLD, NEW, NEW | {"pooling_mode": ["lasttoken"]}, OLD | NEW], ids=str)
def test_both_spellings_are_the_same_folder(tmp_path, types, pooling):
    files = st_format.read(st_folder(tmp_path, types=types, pooling=pooling))
    assert files.transformer == tmp_path and files.normalize and files.max_length is None
    assert files.prompts == Prompts(query=None)


@pytest.mark.parametrize(
    ("pooling", "said"),
    [
        (OLD | {"pooling_mode_lasttoken": False, "pooling_mode_max_tokens": True}, "max"),
        (OLD | {"pooling_mode_cls_token": True}, "cls, lasttoken"),
        (NEW | {"pooling_mode": "mean_sqrt_len_tokens"}, "mean_sqrt_len_tokens"),
        (NEW | {"pooling_mode": ["mean", "lasttoken"]}, "mean, lasttoken"),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_modules", [True, False])
def test_another_pooling_is_refused_by_name(tmp_path, pooling, said, with_modules):
    st_folder(tmp_path, pooling=pooling)
    if not with_modules:
        (tmp_path / "modules.json").unlink()
    with pytest.raises(UserError, match=f"1_Pooling/config.json: pooling {said};"):
        st_format.read(tmp_path)


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        (OLD, "last"),
        (OLD | {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}, "mean"),
        (NEW | {"pooling_mode": "cls"}, "cls"),
        (NEW | {"pooling_mode": "weightedmean"}, "weighted_mean"),
        ({"word_embedding_dimension": 24}, "mean"),
    ],
    ids=str,
)
def test_the_pooling_is_what_the_files_ask_for_and_the_mean_where_they_do_not_say(tmp_path, pooling, kind):
    assert st_format.read(st_folder(tmp_path, pooling=pooling)).pooling == kind


@pytest.mark.parametrize(
    ("types", "paths", "said"),
    [
        ([*OLD_TYPES, "sentence_transformers.models.Dense"], [*PATHS, "3_Dense"], "models.Dense"),
        (["custom.Transformer", *OLD_TYPES[1:]], PATHS, "custom.Transformer"),
        ([*OLD_TYPES, OLD_TYPES[1]], [*PATHS, "3_Pooling"], "models.Pooling"),
        (OLD_TYPES[:1], PATHS[:1], "no Pooling"),
        (OLD_TYPES, ["../elsewhere", *PATHS[1:]], "not a path inside"),
        (OLD_TYPES, ["/elsewhere", *PATHS[1:]], "not a path inside"),
    ],
    ids=str,
)
def test_modules_that_are_not_here_are_refused_by_name(tmp_path, types, paths, said):
    st_folder(tmp_path)
    modules = [{"path": p, "type": t} for p, t in zip(paths, types, strict=True)]
    write_json(tmp_path / "modules.json", modules)
    with pytest.raises(UserError, match=f"modules.json.*{said}"):
        st_format.read(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[1]", "not json", '[{"type": "x"}]'])
def test_a_modules_file_that_is_no_list_of_modules_is_named(tmp_path, content):
    st_folder(tmp_path)
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(UserError, match=r"modules\.json: "):
        st_format.read(tmp_path)


def test_without_normalize_cosines_are_the_same_and_other_comparisons_are_refused(tmp_path):
    without = dict(types=OLD_TYPES[:2], paths=PATHS[:2])
    files = st_format.read(st_folder(tmp_path, **without, settings={"similarity_fn_name": "cosine"}))
    assert not files.normalize
    with pytest.raises(UserError, match='similarity_fn_name: "dot" asks for vectors of other lengths'):
        st_format.read(st_folder(tmp_path, **without, settings={"similarity_fn_name": "dot"}))
    assert st_format.read(st_folder(tmp_path, settings={"similarity_fn_name": "dot"})).normalize


@pytest.mark.parametrize(
    ("settings", "bert", "said"),
    [
        ({"model_type": "SparseEncoder"}, None, "model_type"),
        ({"prompts": ["a"]}, None, "prompts"),
        ({"prompts": {"query": 1}}, None, "prompts"),
        (None, {"max_seq_length": 9, "do_lower_case": True}, "do_lower_case"),
        (None, {"max_seq_length": 9, "config_kwargs": {"is_causal": False}}, "config_kwargs"),
        (None, {"max_seq_length": 9, "transformer_task": "text-generation"}, "transformer_task"),
        (None, {"max_seq_length": "9"}, "max_seq_length"),
    ],
    ids=str,
)
def test_settings_that_change_the_vectors_are_refused_by_name(tmp_path, settings, bert, said):
    with pytest.raises(UserError, match=said):
        st_format.read(st_folder(tmp_path, settings=settings, bert=bert))


@pytest.mark.parametrize(
    ("bert", "limit", "positions", "expected"),
    [
        ({"max_seq_length": 48, "do_lower_case": False}, 4096, 77, 48),
        ({"max_seq_length": 99}, None, 77, 99),
        ({"max_seq_length": None}, 64, 77, 64),
        (None, 64, None, 64),
        (None, 4096, 77, 77),
        (None, int(1e30), 77, None),
        (None, 1e30, 77, None),
        (None, None, 77, None),
    ],
)
def test_the_length_is_where_sentence_transformers_looks_for_it(tmp_path, bert, limit, positions, expected):
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": limit})
    write_json(tmp_path / "config.json", {} if positions is None else {"max_position_embeddings": positions})
    assert st_format.read(st_folder(tmp_path, bert=bert)).max_length == expected


E5_MISTRAL = {
    "web_search_query": SEARCH,
    "sts_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
    "summarization_query": "Instruct: Given a news summary, retrieve other semantically similar summaries\nQuery: ",
    "bitext_query": "Instruct: Retrieve parallel sentences.\nQuery: ",
}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (E5_MISTRAL, Prompts(query="Instruct: {task}\nQuery: ")),
        ({"query": SEARCH.rstrip(), "document": ""}, Prompts(query="Instruct: {task}\nQuery:")),
        ({"s2s": "Instruct:two\nlines\nQuery: "}, Prompts(query="Instruct:{task}\nQuery: ")),
        ({"sts": SEARCH, "query": SEARCH.rstrip()}, Prompts(query="Instruct: {task}\nQuery:")),
        ({"query": "query: ", "passage": "passage: "}, Prompts(query="query: ", passage="passage: ")),
        ({"query": "Represent: ", "document": "D: ", "corpus": "C: "}, Prompts(query="Represent: ", passage="D: ")),
        ({"query": "", "document": None}, Prompts(query=None)),
        ({"clustering": "cluster: "}, Prompts(query=None)),
        ({}, Prompts(query=None)),
    ],
    ids=str,
)
def test_prompts_are_templates_where_they_hold_an_instruction(tmp_path, named, expected):
    assert st_format.read(st_folder(tmp_path, settings={"prompts": named})).prompts == expected


@pytest.mark.parametrize("tasks", [(), ("Find it.",), ("Find it.", "Translate it.", "Find it.")])
@pytest.mark.parametrize(
    "prompts",
    [
        Prompts(query=INSTRUCT),
        Prompts(query="Instruct: {task}\nQuery:", passage="P: "),
        Prompts(query="q: ", passage="p: "),
        Prompts(query=None),
    ],
    ids=str,
)
def test_named_prompts_are_understood_again(tmp_path, prompts, tasks):
    named = st_format.name_prompts(prompts, tasks)
    assert st_format.read_prompts(named, tmp_path) == prompts


def test_one_task_is_the_query_s_default_and_several_have_names():
    one = st_format.name_prompts(Prompts(query=INSTRUCT), ["Find it.", "Find it."])
    assert one == {"query": "Instruct: Find it.\nQuery: ", "web_search_query": SEARCH}
    two = st_format.name_prompts(Prompts(query=INSTRUCT), ["Find it, quickly.", "Translate it."])
    assert list(two) == ["web_search_query", "find_it_quickly", "translate_it"]


def test_a_folder_without_modules_says_nothing(tmp_path):
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 64})
    files = st_format.read(tmp_path)
    assert files.transformer == tmp_path and files.max_length is None and files.prompts == Prompts(query=None)


@pytest.fixture(scope="module")
def e5_mistral(tmp_path_factory):
    """The layout of intfloat/e5-mistral-7b-instruct, tiny: merged shards, ST files, and the adapter in lora/."""
    root = tmp_path_factory.mktemp("hub") / "e5-mistral-7b-instruct"
    base = root.parent / "Mistral-7B-v0.1"
    model = tiny.adapted(save_model(base), ("q", "down"))
    tokens = tokenizer().tokens
    tokens.post_processor = formats.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokens.save(str(base / "tokenizer.json"))
    write_json(
        base / "tokenizer_config.json",
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "eos_token": "</s>"},
    )
    rank = tiny.RANK
    config = peft_format.AdapterConfig(rank=rank, alpha=2.0 * rank, dropout=0.1, targets=("q", "down"), base=str(base))
    adapters = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))
    peft_format.save_adapter(adapters, model.cfg, config, root / "lora")
    save_model(root, lora.merge(model))
    shard(root)
    st_folder(
        root,
        bert={"max_seq_length": 4096, "do_lower_case": False},
        settings={"prompts": E5_MISTRAL, "default_prompt_name": None},
    )
    shutil.copy(base / "tokenizer.json", root)
    write_json(
        root / "tokenizer_config.json",
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True, "eos_token": "</s>"},
    )
    return root


def shard(root):
    """model.safetensors as two files and an index."""
    weights = load_file(root / "model.safetensors")
    (root / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((list(weights)[::2], list(weights)[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, root / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    write_json(root / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": weight_map})


def test_the_official_layout_opens_merged_and_as_an_adapter_with_the_same_vectors(e5_mistral):
    root = e5jax.Encoder.load(str(e5_mistral))
    assert root.max_length == 4096 and root.prompts == Prompts(query="Instruct: {task}\nQuery: ")
    assert root.tokenizer.encode(["bees"], 9)[0][[0, -1]].tolist() == [0, 1]
    adapter = e5jax.Encoder.load(str(e5_mistral / "lora"))
    np.testing.assert_allclose(adapter.encode(TEXTS), root.encode(TEXTS), atol=1e-5)
    base = e5jax.Encoder.load(str(e5_mistral.parent / "Mistral-7B-v0.1"))
    assert np.abs(base.encode(TEXTS) - root.encode(TEXTS)).max() > 0.01


def test_an_adapter_whose_base_is_nowhere_says_which_base(e5_mistral, tmp_path):
    shutil.copytree(e5_mistral / "lora", tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "mistralai/Mistral-7B-v0.1"
    write_json(tmp_path / "lora" / "adapter_config.json", config)
    with pytest.raises(UserError, match=r"lora/adapter_config.json: the base .*'mistralai/Mistral-7B-v0.1' is not a"):
        e5jax.Encoder.load(str(tmp_path / "lora"))


def test_a_model_and_an_adapter_in_one_folder_are_refused(e5_mistral, tmp_path):
    shutil.copytree(e5_mistral, tmp_path / "both")
    shutil.copytree(tmp_path / "both" / "lora", tmp_path / "both", dirs_exist_ok=True)
    with pytest.raises(UserError, match="a whole model and an adapter in one folder"):
        e5jax.Encoder.load(str(tmp_path / "both"))


def test_a_transformer_in_a_folder_of_its_own_is_found(tmp_path):
    save_model(tmp_path / "plain")
    tokenizer().save(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "st" / "0_Transformer")
    paths = ["0_Transformer", *PATHS[1:]]
    st_folder(tmp_path / "st", paths=paths, bert={"max_seq_length": 20, "do_lower_case": False})
    encoder = e5jax.Encoder.load(str(tmp_path / "st"))
    assert encoder.max_length == 20
    np.testing.assert_array_equal(encoder.encode(TEXTS), e5jax.Encoder.load(str(tmp_path / "plain")).encode(TEXTS))


def test_nan_in_the_weights_is_refused_when_the_model_is_loaded(tmp_path):
    save_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors: layers\.1\.mlp\.up_proj\.weight holds NaN"):
        e5jax.Encoder.load(str(tmp_path))
