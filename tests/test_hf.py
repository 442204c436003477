import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from e5jax import hf, hf_decoder, lora, peft_format, sharding, tensors
from e5jax.decoder import Decoder, DecoderConfig
from e5jax.errors import UserError


jax.config.update("jax_num_cpu_devices", 8)

# Every size is another, so that no transposed weight fits; those that a mesh splits are even.
MISTRAL = DecoderConfig(
    family="mistral",
    vocab_size=104,
    dim=48,
    hidden=56,
    layers=3,
    heads=6,
    kv_heads=2,
    head_dim=10,
    window=4,
    rope_theta=5e5,
    norm_eps=1e-5,
    qk_norm=False,
)
LLAMA = dataclasses.replace(MISTRAL, family="llama", window=None)
QWEN3 = dataclasses.replace(MISTRAL, family="qwen3", window=None, qk_norm=True)
FAMILIES = pytest.mark.parametrize("cfg", [MISTRAL, LLAMA, QWEN3], ids=lambda cfg: cfg.family)

NEW_SPELLING = {
    "model_type": "mistral",
    "vocab_size": 104,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "hidden_act": "silu",
    "sliding_window": 4,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    "dtype": "float32",
    "max_position_embeddings": 77,
}
OLD_SPELLING = {k: v for k, v in NEW_SPELLING.items() if k not in ("rope_parameters", "dtype")} | {
    "rope_theta": 5e5,
    "rope_scaling": None,
    "torch_dtype": "float32",
}


def stored_weights(cfg, dtype="float32", seed=0):
    """Random weights under Hugging Face's names and in its layout, written out here once more."""
    heads, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    layer = {
        "input_layernorm": (cfg.dim,),
        "self_attn.q_proj": (heads, cfg.dim),
        "self_attn.k_proj": (kv, cfg.dim),
        "self_attn.v_proj": (kv, cfg.dim),
        "self_attn.o_proj": (cfg.dim, heads),
        "post_attention_layernorm": (cfg.dim,),
        "mlp.gate_proj": (cfg.hidden, cfg.dim),
        "mlp.up_proj": (cfg.hidden, cfg.dim),
        "mlp.down_proj": (cfg.dim, cfg.hidden),
    }
    if cfg.qk_norm:
        layer |= {"self_attn.q_norm": (cfg.head_dim,), "self_attn.k_norm": (cfg.head_dim,)}
    shapes = {"embed_tokens.weight": (cfg.vocab_size, cfg.dim), "norm.weight": (cfg.dim,)}
    for i in range(cfg.layers):
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(jnp.dtype(dtype)) for name, shape in shapes.items()}


def write(directory, weights, config=NEW_SPELLING):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_sharded(directory, weights, files=3):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(NEW_SPELLING))
    names = [f"model-{i:05}-of-{files:05}.safetensors" for i in range(1, files + 1)]
    weight_map = {tensor: names[i % files] for i, tensor in enumerate(weights)}
    for name in names:
        save_file({t: w for t, w in weights.items() if weight_map[t] == name}, directory / name)
    write_index(directory, weight_map)
    return directory


def write_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def abstract(cfg, dtype="float32"):
    return nnx.state(nnx.eval_shape(lambda: Decoder(cfg, jnp.dtype(dtype), rngs=nnx.Rngs(0))))


def load(directory, cfg, dtype="float32", layout=None):
    return hf.load(directory, cfg, nnx.to_pure_dict(abstract(cfg, dtype)), layout, dtype)


def assert_same_bits(a, b):
    assert set(a) == set(b)
    for name in a:
        x, y = np.asarray(a[name]), np.asarray(b[name])
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name


def decoder(cfg):
    """One whose weights are all zero."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(cfg, jnp.float32, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))


# Weights


@FAMILIES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_loaded_and_saved_has_the_bits_it_had(cfg, dtype, tmp_path):
    weights = stored_weights(cfg, dtype)
    state = load(write(tmp_path / "in", weights), cfg, dtype)
    hf.save(state, cfg, dtype, tmp_path / "out")
    assert_same_bits(load_file(tmp_path / "out/model.safetensors"), weights)
    assert hf.read_config(tmp_path / "out") == hf.HFConfig(architecture=cfg, dtype=dtype, kept={})


def test_one_file_an_index_and_names_with_a_prefix_are_the_same_model(tmp_path):
    weights = stored_weights(MISTRAL)
    plain = flatten_dict(load(write(tmp_path / "plain", weights), MISTRAL))
    headed = {f"model.{name}": w for name, w in weights.items()}
    headed |= {
        "lm_head.weight": np.ones((104, 48), np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32),
    }
    for directory in (
        write(tmp_path / "headed", headed),
        write_sharded(tmp_path / "sharded", weights),
        write_sharded(tmp_path / "both", headed),
    ):
        assert_same_bits(flatten_dict(load(directory, MISTRAL)), plain)


def test_a_large_model_is_saved_in_files_with_an_index(tmp_path, monkeypatch):
    weights = stored_weights(MISTRAL)
    state = load(write(tmp_path / "in", weights), MISTRAL)
    monkeypatch.setattr(tensors, "MAX_FILE_BYTES", 60_000)
    out = tmp_path / "out"
    hf.save(state, MISTRAL, "float32", out)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(set(index.values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert sorted(p.name for p in out.iterdir()) == sorted([*files, "config.json", "model.safetensors.index.json"])
    for file in files:
        held = load_file(out / file)
        assert sum(w.nbytes for w in held.values()) <= 60_000
        assert set(held) == {name for name, where in index.items() if where == file}
    assert_same_bits(flatten_dict(load(out, MISTRAL)), flatten_dict(state))


def test_weights_are_cast_to_the_dtype_asked_for(tmp_path):
    weights = stored_weights(MISTRAL)
    state = load(write(tmp_path / "in", weights), MISTRAL, "bfloat16")
    expected = weights["layers.1.mlp.up_proj.weight"].astype(jnp.bfloat16).T
    np.testing.assert_array_equal(state["layers"]["up"]["w"][1], expected)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_each_device_of_a_mesh_holds_its_part_and_every_byte_is_read_once(shape, tmp_path, monkeypatch):
    directory = write(tmp_path / "in", stored_weights(QWEN3))
    whole = flatten_dict(load(directory, QWEN3), sep=".")
    layout = nnx.to_pure_dict(sharding.shardings(abstract(QWEN3), sharding.make_mesh(shape)))
    read, sizes = tensors.Stored.read, []
    monkeypatch.setattr(tensors.Stored, "read", lambda *args: sizes.append((x := read(*args)).size) or x)
    state = flatten_dict(load(directory, QWEN3, layout=layout), sep=".")
    assert sum(sizes) == sum(w.size for w in whole.values())
    assert_same_bits(state, whole)
    for path, placed in flatten_dict(layout, sep=".").items():
        assert state[path].sharding == placed
        for part in state[path].addressable_shards:
            assert part.data.shape == placed.shard_shape(whole[path].shape)
            np.testing.assert_array_equal(part.data, whole[path][part.index])
    parts = shape[1] * shape[2]
    assert state["layers.q.w"].addressable_shards[0].data.size == whole["layers.q.w"].size // parts
    assert state["embed"].addressable_shards[0].data.size == whole["embed"].size // parts


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_any_axis_may_be_split(axis, tmp_path):
    cfg = dataclasses.replace(MISTRAL, layers=2)
    directory = write(tmp_path / "in", stored_weights(cfg))
    mesh = sharding.make_mesh((4, 1, 2))
    spec = lambda leaf: P(*(None,) * axis, "tensor") if axis < len(leaf.shape) else P()
    pure = nnx.to_pure_dict(abstract(cfg))
    layout = jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf)), pure)
    assert_same_bits(flatten_dict(load(directory, cfg, layout=layout)), flatten_dict(load(directory, cfg)))


MEASURE = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from flax import nnx
from e5jax import hf, sharding
from e5jax.decoder import Decoder

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

directory = Path(sys.argv[1])
cfg = hf.read_config(directory).architecture
state = nnx.state(nnx.eval_shape(lambda: Decoder(cfg, jnp.float32, rngs=nnx.Rngs(0))))
layout = nnx.to_pure_dict(sharding.shardings(state, sharding.make_mesh((1, -1, 1))))
jax.device_put(jnp.ones(8)).block_until_ready()
before = peak()
jax.block_until_ready(hf.load(directory, cfg, nnx.to_pure_dict(state), layout, jnp.float32))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("devices", [1, 4])
def test_loading_holds_the_model_once_and_a_leaf_or_two(devices, tmp_path):
    cfg = dataclasses.replace(MISTRAL, vocab_size=4096, dim=1024, hidden=2816, layers=8, heads=16, head_dim=64)
    weights = stored_weights(dataclasses.replace(cfg, layers=0))
    layer = stored_weights(dataclasses.replace(cfg, layers=1, vocab_size=1))
    weights |= {
        name.replace(".0.", f".{i}."): w for name, w in layer.items() for i in range(cfg.layers) if ".0." in name
    }
    write(tmp_path / "in", weights, {"model_type": cfg.family, "dtype": "float32"} | hf_decoder.config_json(cfg))
    size = sum(w.nbytes for w in weights.values())
    assert size > 350e6
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "in"], env=env, capture_output=True, text=True, check=True
    )
    largest = cfg.layers * cfg.hidden * cfg.dim * 4  # gate, up or down of all layers
    # A second leaf while the runtime still lets go of the one before; twice the model would be 738 MB.
    assert int(run.stdout) < size + 2 * largest + 40e6


# Bad weights


def test_missing_unexpected_and_misshapen_tensors_are_named_with_their_shapes(tmp_path):
    good = stored_weights(MISTRAL)

    def refused(weights, *words):
        with pytest.raises(UserError) as error:
            load(write(tmp_path / "in", weights), MISTRAL)
        assert all(word in str(error.value) for word in words), error.value
        return str(error.value)

    refused({k: v for k, v in good.items() if "2.mlp.up" not in k}, "missing", "layers.2.mlp.up_proj.weight")
    refused(good | {"layers.0.self_attn.q_proj.bias": np.ones(60)}, "unexpected", "layers.0.self_attn.q_proj.bias")
    extra = stored_weights(dataclasses.replace(MISTRAL, layers=4))
    assert refused(extra, "unexpected", "and 4 more").count("layers.3.") == 5  # a config that counts too few layers
    name = "layers.1.self_attn.o_proj.weight"
    refused(good | {name: np.ascontiguousarray(good[name].T)}, name, "[60, 48] where [48, 60] is wanted")
    refused(good | {"norm.weight": np.ones(48, np.int8)}, "norm.weight I8", "BF16")
    refused({}, "missing", "embed_tokens.weight")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_weight_that_is_not_finite_is_named(value, dtype, tmp_path):
    weights = stored_weights(MISTRAL, dtype)
    weights["layers.1.mlp.down_proj.weight"][3, 5] = value
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN or infinity"):
        load(write(tmp_path / "in", weights), MISTRAL)


def test_a_damaged_file_is_named(tmp_path):
    directory = write(tmp_path / "in", stored_weights(MISTRAL))
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:5000], whole[:4], b"", b"\xff" * 64, b"PK\x03\x04" + whole):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
            load(directory, MISTRAL)


def test_a_pickle_is_never_read_and_the_way_out_is_said(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        load(tmp_path, MISTRAL)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: pickle files are never read.*save_pretrained"):
        load(tmp_path, MISTRAL)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..", "x.bin", "a\\x", ""]
)
def test_an_index_names_plain_safetensors_files_only(name, tmp_path):
    directory = write_sharded(tmp_path / "in", stored_weights(MISTRAL))
    write(tmp_path, stored_weights(MISTRAL))
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    write_index(directory, {"norm.weight": name})
    with pytest.raises(UserError, match="is not a safetensors file inside this folder") as error:
        load(directory, MISTRAL)
    assert repr(name) in str(error.value)


def test_a_file_that_is_a_link_out_of_the_folder_is_refused_unless_the_hub_made_it(tmp_path):
    weights = stored_weights(MISTRAL)
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    snapshot.mkdir(parents=True)
    write(snapshot, weights)
    blob = tmp_path / "models--a--b/blobs/sha"
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to("../../blobs/sha")
    load(snapshot, MISTRAL)
    directory = write(tmp_path / "in", weights)
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to(blob)
    with pytest.raises(UserError, match=r"'model\.safetensors' is not a safetensors file inside"):
        load(directory, MISTRAL)


def test_an_index_that_names_an_absent_file_or_none_is_refused(tmp_path):
    directory = write_sharded(tmp_path / "in", stored_weights(MISTRAL))
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00003\.safetensors is missing"):
        load(directory, MISTRAL)
    for weight_map in ({}, None, ["x"]):
        write_index(directory, weight_map)
        with pytest.raises(UserError, match="weight_map"):
            load(directory, MISTRAL)


def test_saving_never_mixes_two_models_and_keeps_the_other_files(tmp_path):
    state = load(write(tmp_path / "in", stored_weights(MISTRAL)), MISTRAL)
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokenizer.json").write_text("{}")
    hf.save(state, MISTRAL, "float32", out, {"max_position_embeddings": 77})
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert hf.read_config(out).kept == {"max_position_embeddings": 77}
    with pytest.raises(UserError, match="holds weights already"):
        hf.save(state, MISTRAL, "float32", out)


def test_what_is_not_a_bare_decoder_of_that_config_is_not_saved(tmp_path):
    model = lora.adapt(decoder(MISTRAL), 2, 4.0, ("q",), jax.random.key(0))
    with pytest.raises(ValueError, match=r"layers\.q\.adapter"):
        hf.save(nnx.to_pure_dict(nnx.state(model)), MISTRAL, "float32", tmp_path / "out")
    windowed = dataclasses.replace(LLAMA, window=4)
    with pytest.raises(UserError, match="sliding window"):
        hf.save(nnx.to_pure_dict(nnx.state(decoder(windowed))), windowed, "float32", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_save_cut_short_leaves_no_config(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError):
        hf.save(nnx.to_pure_dict(nnx.state(decoder(MISTRAL))), MISTRAL, "float32", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_digest_is_of_every_byte_and_name(tmp_path):
    weights = stored_weights(MISTRAL)
    first = hf.digest(write(tmp_path / "a", weights))
    assert first == hf.digest(write(tmp_path / "b", weights)) and len(first) == 64
    assert (
        first
        == hashlib.sha256(
            "".join(
                f"{hashlib.sha256((tmp_path / 'a' / name).read_bytes()).hexdigest()}  {name}\n"
                for name in ("config.json", "model.safetensors")
            ).encode()
        ).hexdigest()
    )
    weights["norm.weight"][7] = np.nextafter(weights["norm.weight"][7], np.float32(9))
    assert first != hf.digest(write(tmp_path / "b", weights))
    assert first != hf.digest(write(tmp_path / "a", stored_weights(MISTRAL), OLD_SPELLING))


# config.json


def read(tmp_path, **changes):
    config = NEW_SPELLING | changes
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "ABSENT"}))
    return hf.read_config(tmp_path)


def test_old_and_new_spelling_are_the_same_model(tmp_path):
    expected = hf.HFConfig(architecture=MISTRAL, dtype="float32", kept={"max_position_embeddings": 77})
    for config in (OLD_SPELLING, NEW_SPELLING, OLD_SPELLING | NEW_SPELLING):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert hf.read_config(tmp_path) == expected


def test_sizes_that_are_null_follow_from_the_others(tmp_path):
    assert read(tmp_path, head_dim=None).architecture.head_dim == 8
    assert read(tmp_path, head_dim="ABSENT").architecture.head_dim == 8
    assert read(tmp_path, num_key_value_heads=None).architecture.kv_heads == 6
    assert read(tmp_path, sliding_window=None).architecture.window is None
    assert read(tmp_path, sliding_window="ABSENT").architecture.window == 4096


def test_an_absent_dtype_is_that_of_the_weights(tmp_path):
    write(tmp_path, stored_weights(MISTRAL, "bfloat16"))
    assert read(tmp_path, dtype="ABSENT").dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "t5"}, ["model_type 't5'", "mistral, llama, qwen3, bert, xlm-roberta"]),
        ({"model_type": "ABSENT"}, ["model_type None"]),
        ({"model_type": ["mistral"]}, ["model_type"]),
        ({"auto_map": {"AutoModel": "evil.Model"}}, ["auto_map", "evil.Model", "never run"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"is_causal": "no"}, ["is_causal"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"pretraining_tp": 2}, ["pretraining_tp"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling", "linear"]),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ["rope_parameters", "yarn"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["rope_parameters", "full_attention"]),
        ({"rope_parameters": "yarn"}, ["rope_parameters"]),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, ["layer_types"]),
        ({"layer_types": ["full_attention"] * 3}, ["layer_types", "sliding_window 4"]),
        ({"layer_types": 3}, ["layer_types"]),
        ({"hidden_size": "ABSENT"}, ["hidden_size is missing"]),
        ({"vocab_size": None}, ["vocab_size is missing"]),
        ({"num_hidden_layers": "3"}, ["num_hidden_layers", '"3"']),
        ({"num_hidden_layers": True}, ["num_hidden_layers"]),
        ({"intermediate_size": 0}, ["intermediate_size"]),
        ({"num_attention_heads": 2.5}, ["num_attention_heads"]),
        ({"rms_norm_eps": math.nan}, ["rms_norm_eps"]),
        ({"rope_parameters": {"rope_theta": -1}}, ["rope_theta"]),
        ({"sliding_window": 2.5}, ["sliding_window"]),
        ({"num_key_value_heads": 4}, ["kv_heads 4"]),
        ({"head_dim": 9}, ["head_dim 9"]),
        ({"dtype": "float64"}, ["dtype 'float64'", "bfloat16"]),
        ({"dtype": ["float32"]}, ["dtype"]),
    ],
    ids=str,
)
def test_a_config_that_asks_for_what_is_not_here_is_refused_by_name(changes, words, tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path, **changes)
    assert all(word in str(error.value) for word in [*words, "config.json"]), error.value


def test_keys_at_their_harmless_values_and_unknown_ones_change_nothing(tmp_path):
    plain = read(tmp_path)
    harmless = {"attention_bias": False, "mlp_bias": False, "is_causal": True, "pretraining_tp": 1, "auto_map": None}
    assert read(tmp_path, **harmless, rope_scaling={"type": "default"}, use_cache=True, new_in_2031=[1]) == plain


def test_qwen_slides_only_where_its_config_says_so(tmp_path):
    window = lambda **changes: read(tmp_path, model_type="qwen3", **changes).architecture.window
    assert window() is None
    assert window(use_sliding_window=True, max_window_layers=0) == 4
    assert window(use_sliding_window=True, max_window_layers=3) is None
    assert window(use_sliding_window=True, layer_types=["full_attention"] * 3) is None
    assert window(use_sliding_window=True, layer_types=["sliding_attention"] * 3) == 4
    for mixed in ({"max_window_layers": 1}, {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]}):
        with pytest.raises(UserError, match="layer_types"):
            window(use_sliding_window=True, **mixed)


def test_a_llama_has_no_window(tmp_path):
    assert read(tmp_path, model_type="llama", sliding_window="ABSENT").architecture == LLAMA
    with pytest.raises(UserError, match="sliding_window 4"):
        read(tmp_path, model_type="llama")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_named(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json"):
        hf.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json"):
        hf.read_config(tmp_path)


# Names


def test_a_folder_is_itself_and_any_other_name_goes_to_the_hub(tmp_path, monkeypatch):
    assert hf.resolve(str(tmp_path), None) == tmp_path
    asked = {}

    def download(name, **kwargs):
        asked.update(kwargs, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hf.resolve("someone/model", "abc") == tmp_path
    assert (asked["name"], asked["revision"]) == ("someone/model", "abc")
    wanted = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "1_Pooling/config.json"]
    offered = [*wanted, "pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors", "model.pt"]
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(huggingface_hub.utils.filter_repo_objects(offered, **patterns)) == wanted


@pytest.mark.parametrize("name", ["someone/absent", "no/such/folder", "./nowhere", "/nowhere", ""])
def test_a_name_that_is_neither_folder_nor_repository_is_refused_in_words(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="not a folder here, and the Hugging Face hub") as error:
        hf.resolve(name, None)
    assert repr(name) in str(error.value)


# Adapters

ADAPTER = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "o_proj", "down_proj"],
    "base_model_name_or_path": "someone/model",
    "bias": "none",
    "new_in_2031": None,
}
SHAPES = {"self_attn.q_proj": (60, 48), "self_attn.o_proj": (48, 60), "mlp.down_proj": (48, 56)}


def adapter_weights(prefix="base_model.model."):
    rng = np.random.default_rng(1)
    return {
        f"{prefix}layers.{i}.{name}.lora_{which}.weight": rng.normal(size=shape).astype(np.float32)
        for i in range(3)
        for name, (out, inner) in SHAPES.items()
        for which, shape in (("A", (4, inner)), ("B", (out, 4)))
    }


def write_adapter(directory, weights, **changes):
    directory.mkdir(exist_ok=True)
    config = {k: v for k, v in (ADAPTER | changes).items() if v != "ABSENT"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, directory / "adapter_model.safetensors")
    return directory


def test_an_adapter_is_read_with_either_prefix_and_saved_with_the_bits_it_had(tmp_path):
    weights = adapter_weights()
    config = peft_format.AdapterConfig(rank=4, alpha=8.0, dropout=0.1, targets=("q", "o", "down"), base="someone/model")
    headed = adapter_weights("base_model.model.model.")
    for i, (held, targets) in enumerate([(weights, ADAPTER["target_modules"]), (headed, r".*\.(q|o|down)_proj")]):
        directory = write_adapter(tmp_path / f"in{i}", held, target_modules=targets)
        assert peft_format.read_adapter_config(directory) == config
        model = peft_format.load_adapter(directory, decoder(MISTRAL))
        state = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))
        peft_format.save_adapter(state, MISTRAL, config, tmp_path / f"out{i}")
        assert_same_bits(load_file(tmp_path / f"out{i}/adapter_model.safetensors"), weights)
        assert peft_format.read_adapter_config(tmp_path / f"out{i}") == config


def test_what_an_adapter_adds_is_scale_b_a_of_its_files(tmp_path):
    weights = adapter_weights()
    model = peft_format.load_adapter(write_adapter(tmp_path / "in", weights), decoder(MISTRAL))
    for target, name in (("q", "self_attn.q_proj"), ("o", "self_attn.o_proj")):
        a, b = (weights[f"base_model.model.layers.2.{name}.lora_{which}.weight"] for which in "AB")
        delta = getattr(model.layers, target).adapter.delta()[2].reshape(SHAPES[name][::-1])
        np.testing.assert_allclose(delta, 8 / 4 * (b @ a).T, atol=1e-5)


def test_the_scale_of_a_rank_stabilised_adapter_is_folded_into_alpha(tmp_path):
    directory = write_adapter(tmp_path / "in", adapter_weights(), use_rslora=True)
    config = peft_format.read_adapter_config(directory)
    assert config.alpha / config.rank == 8 / math.sqrt(4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, ["peft_type", "LOHA"]),
        ({"peft_type": "ABSENT"}, ["peft_type"]),
        ({"use_dora": True}, ["use_dora"]),
        ({"rank_pattern": {"q_proj": 8}}, ["rank_pattern"]),
        ({"alpha_pattern": {"q_proj": 8}}, ["alpha_pattern"]),
        ({"bias": "all"}, ["bias"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"modules_to_save": ["embed_tokens"]}, ["modules_to_save"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out"]),
        ({"layers_to_transform": [0]}, ["layers_to_transform"]),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights", "pissa"]),
        ({"r": "ABSENT"}, ["r is missing"]),
        ({"lora_alpha": None}, ["lora_alpha is missing"]),
        ({"lora_dropout": "much"}, ["lora_dropout"]),
        ({"target_modules": ["q_proj", "lm_head"]}, ["target_modules", "lm_head"]),
    ],
    ids=str,
)
def test_an_adapter_that_is_not_plain_lora_is_refused_by_name(changes, words, tmp_path):
    directory = write_adapter(tmp_path / "in", adapter_weights(), **changes)
    with pytest.raises(UserError) as error:
        peft_format.read_adapter_config(directory)
    assert all(word in str(error.value) for word in [*words, "adapter_config.json"]), error.value


def test_an_adapter_file_that_does_not_fit_the_model_is_refused_by_name(tmp_path):
    good = adapter_weights()
    name = "layers.1.mlp.down_proj.lora_B.weight"

    def refused(weights, *words, **changes):
        with pytest.raises(UserError) as error:
            peft_format.load_adapter(write_adapter(tmp_path / "in", weights, **changes), decoder(MISTRAL))
        assert all(word in str(error.value) for word in words), error.value

    refused({k: v for k, v in good.items() if name not in k}, "missing", name)
    refused(good | {"base_model.model.layers.0.norm.lora_A.weight": np.ones(3)}, "unexpected", "layers.0.norm.lora_A")
    refused(good, "[4, 56] where [2, 56] is wanted", r=2)
    refused(good | {f"base_model.model.{name}": np.full((48, 4), np.nan, np.float32)}, name, "NaN")
    refused({}, "target_modules")
    (tmp_path / "in/adapter_model.safetensors").rename(tmp_path / "in/adapter_model.bin")
    with pytest.raises(UserError, match="pickle files are never read"):
        peft_format.read_adapter_config(tmp_path / "in")


def test_adapters_that_the_config_does_not_name_are_not_saved(tmp_path):
    model = lora.adapt(decoder(MISTRAL), 4, 8.0, ("q",), jax.random.key(0))
    config = peft_format.AdapterConfig(rank=4, alpha=8.0, dropout=0.0, targets=("q", "k"), base=None)
    with pytest.raises(ValueError, match="not the adapters of"):
        peft_format.save_adapter(nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam)), MISTRAL, config, tmp_path)
