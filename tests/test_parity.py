"""Against transformers and PEFT, in f32, on tiny random models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e5jax import hf, peft_format
from e5jax.decoder import Decoder
from e5jax.layers import NO_DROPOUT
from e5jax.pooling import unit


torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # for models this small, threads cost more than they give

# Every size is another, so that no transposed weight fits; heads · head_dim is not hidden_size either.
SIZES = dict(
    vocab_size=101,
    hidden_size=48,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    rms_norm_eps=1e-3,  # large enough to be seen
    rope_parameters={"rope_type": "default", "rope_theta": 77.0},
)
MODELS = {
    "mistral": (transformers.MistralModel, transformers.MistralConfig, {"sliding_window": 4}),
    "mistral without window": (transformers.MistralModel, transformers.MistralConfig, {"sliding_window": None}),
    "llama": (transformers.LlamaModel, transformers.LlamaConfig, {}),
    "qwen3": (transformers.Qwen3Model, transformers.Qwen3Config, {}),
    "qwen3 with window": (
        transformers.Qwen3Model,
        transformers.Qwen3Config,
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    ),
}
LENGTHS = (13, 3, 6, 1, 7, 2)
# One bin, two rows of 16 and three of 8: the first row holds two texts, one row is empty.
ROWS = ((16, 2), (8, 3))
OFFSETS = (0, 13, 16, 22, 32, 40)


def make(kind):
    model_class, config_class, own = MODELS[kind]
    torch.manual_seed(0)
    config = config_class(**SIZES | own, attn_implementation="eager")
    model = model_class(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Norms far from ones, projections large enough for attention to be sharp.
            weight.normal_(1.0, 0.3) if weight.ndim == 1 else weight.normal_(0.0, 0.2)
    return model


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """A model of transformers and the same one of ours, through a folder."""
    theirs = make(request.param)
    directory = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(directory)
    return theirs, load(directory)


def load(directory):
    files = hf.read_config(directory)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(files.architecture, jnp.float32, rngs=nnx.Rngs(0))))
    loaded = hf.load(directory, files.architecture, nnx.to_pure_dict(state), None, jnp.float32)
    nnx.replace_by_pure_dict(state, loaded)
    return nnx.merge(graphdef, state)


def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(1, SIZES["vocab_size"], length) for length in LENGTHS]


def states_of_theirs(model):
    """Each text alone -> its hidden states."""
    with torch.no_grad():
        return [model(torch.tensor(text)[None]).last_hidden_state[0].numpy() for text in texts()]


def states_of_ours(model):
    """All texts in one packed bin -> (hidden states of each, unit embeddings [N, D])."""
    tokens, positions, segments = np.zeros((3, sum(width * count for width, count in ROWS)), np.int32)
    places = [slice(offset, offset + length) for offset, length in zip(OFFSETS, LENGTHS, strict=True)]
    for number, (text, place) in enumerate(zip(texts(), places, strict=True), 1):
        tokens[place], positions[place], segments[place] = text, np.arange(len(text)), number

    @jax.jit
    def run(tokens, positions, segments):
        x_TD = model(
            tokens,
            positions,
            segments,
            ROWS,
            read_N=None,
            dtype=jnp.float32,
            remat=False,
            dropout=NO_DROPOUT,
            dropout_keys_T=None,
        )
        return x_TD, unit(x_TD[jnp.array([place.stop - 1 for place in places])])

    x_TD, embeddings = run(tokens, positions, segments)
    return [np.asarray(x_TD[place]) for place in places], np.asarray(embeddings)


def embeddings_of_theirs(model):
    last = np.stack([states[-1] for states in states_of_theirs(model)])
    return last / np.linalg.norm(last, axis=-1, keepdims=True)


def difference(ours, theirs):
    return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True))


def changed(model, **changes):
    """The same weights under another configuration."""
    cfg = dataclasses.replace(model.cfg, **changes)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(cfg, jnp.float32, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, nnx.state(model))


def test_packed_texts_have_the_states_and_embeddings_that_transformers_gives_each_alone(pair):
    theirs, ours = pair
    states, embeddings = states_of_ours(ours)
    assert difference(states, states_of_theirs(theirs)) <= 1e-5
    np.testing.assert_allclose(embeddings, embeddings_of_theirs(theirs), atol=1e-5, rtol=0)


def test_what_we_save_transformers_loads_whole_and_computes_the_same(pair, tmp_path):
    theirs, ours = pair
    hf.save(nnx.to_pure_dict(nnx.state(ours)), ours.cfg, jnp.float32, tmp_path)
    back, report = transformers.AutoModel.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert type(back) is type(theirs) and back.dtype == torch.float32
    assert not any(report.values()), report
    for name, weight in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    for a, b in zip(states_of_theirs(back), states_of_theirs(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pair", ["mistral"], indirect=True)
@pytest.mark.parametrize("window", [3, 5, None])
def test_a_window_that_is_one_off_is_seen(pair, window):
    theirs, ours = pair
    assert ours.cfg.window == 4
    assert difference(states_of_ours(changed(ours, window=window))[0], states_of_theirs(theirs)) > 1e-3


@pytest.mark.parametrize("pair", ["qwen3"], indirect=True)
@pytest.mark.parametrize("changes", [{"rope_theta": 1e4}, {"norm_eps": 1e-6}], ids=str)
def test_another_rope_theta_or_norm_eps_is_seen(pair, changes):
    theirs, ours = pair
    assert difference(states_of_ours(changed(ours, **changes))[0], states_of_theirs(theirs)) > 1e-4


@pytest.mark.parametrize("family", ["mistral", "llama", "qwen3"])
def test_an_absent_key_means_what_it_means_to_transformers(family, tmp_path):
    sizes = {k: v for k, v in SIZES.items() if not k.startswith(("num_key", "head_dim", "rms", "rope"))}
    sizes |= {"num_attention_heads": 32, "hidden_size": 192, "dtype": "float32", "model_type": family}
    for extra in ({}, {"use_sliding_window": True, "max_window_layers": 0}):
        (tmp_path / "config.json").write_text(json.dumps(sizes | extra))
        theirs = transformers.AutoConfig.from_pretrained(tmp_path)
        ours = hf.read_config(tmp_path).architecture
        assert ours.kv_heads == theirs.num_key_value_heads
        assert ours.head_dim == theirs.head_dim
        assert ours.norm_eps == theirs.rms_norm_eps
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
        assert ours.window == getattr(theirs, "sliding_window", None)


def with_adapters(model, targets, **settings):
    """PEFT's adapters on a model, random in A and in B."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        task_type="FEATURE_EXTRACTION", r=4, lora_alpha=12, lora_dropout=0.1, target_modules=targets, **settings
    )
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.2)
    return adapted


@pytest.mark.parametrize(
    ("targets", "settings"),
    [
        (["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], {}),
        (["self_attn.q_proj", "v_proj"], {}),
        (r".*\.(o|down)_proj", {}),
        ("all-linear", {"use_rslora": True}),
    ],
    ids=str,
)
def test_an_adapter_of_peft_gives_pefts_embeddings_here_and_ours_there(targets, settings, tmp_path):
    make("mistral").save_pretrained(tmp_path / "base")
    base = lambda: transformers.AutoModel.from_pretrained(tmp_path / "base", attn_implementation="eager")
    theirs = with_adapters(base(), targets, **settings)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = embeddings_of_theirs(theirs)
    assert np.abs(expected - embeddings_of_theirs(base())).max() > 1e-2

    ours = peft_format.load_adapter(tmp_path / "theirs", load(tmp_path / "base"))
    np.testing.assert_allclose(states_of_ours(ours)[1], expected, atol=1e-5, rtol=0)

    adapters = nnx.to_pure_dict(nnx.state(ours, nnx.LoRAParam))
    config = peft_format.read_adapter_config(tmp_path / "theirs")
    peft_format.save_adapter(adapters, ours.cfg, config, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(base(), tmp_path / "ours").eval()
    np.testing.assert_allclose(embeddings_of_theirs(back), expected, atol=1e-5, rtol=0)


def test_an_adapter_on_a_model_with_a_head_fits_the_one_without(tmp_path):
    make("llama").save_pretrained(tmp_path / "base")
    headed = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    theirs = with_adapters(headed, ["q_proj", "down_proj"])
    theirs.save_pretrained(tmp_path / "adapter")
    ours = peft_format.load_adapter(tmp_path / "adapter", load(tmp_path / "base"))
    expected = embeddings_of_theirs(theirs.get_base_model().model)
    np.testing.assert_allclose(states_of_ours(ours)[1], expected, atol=1e-5, rtol=0)
