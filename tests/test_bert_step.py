"""The step of encoders: adapters and PEFT's files of them, dropout of hidden states, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e5jax import architecture, hf, lora, peft_format
from e5jax.bert import PROJECTIONS
from e5jax.contrast import Contrast, info_nce
from e5jax.layers import Dropout, Noise
from e5jax.packing import BinShape
from e5jax.sharding import batch_shardings, make_mesh, shard_count, shardings
from tests import tiny, tiny_bert
from tests.tiny_bert import BERT


SHAPE = BinShape(chunks=1, shards=1, rows=((16, 5), (8, 2)), slots=12)
TEXTS = tiny_bert.texts((9, 3, 16, 7, 5, 12, 9))
TEXTS.append(TEXTS[0])  # a text twice


def adapted(seed=0):
    """An encoder with adapters on every projection, none of them fresh."""
    model = lora.adapt(tiny_bert.encoder(seed=seed), 3, 6.0, PROJECTIONS, jax.random.key(1))
    for i, projection in enumerate(lora.projections(model.layers).values()):
        b = projection.adapter.b
        b[...] = 0.1 * jax.random.normal(jax.random.key(i), b.shape)
    return model


# Adapters


def test_every_projection_of_a_layer_takes_an_adapter_and_merging_it_changes_nothing():
    assert set(lora.projections(tiny_bert.encoder().layers)) == {*PROJECTIONS} == {"q", "k", "v", "o", "up", "down"}
    bins, vector = tiny.pack(TEXTS, SHAPE)
    encode = tiny.jit(lambda model: tiny.encode(model, bins, SHAPE)[vector])
    beside, bare = encode(adapted()), encode(tiny_bert.encoder())
    np.testing.assert_allclose(encode(lora.merge(adapted())), beside, atol=1e-5)
    assert np.abs(beside - bare).max() > 1e-2


def pooled(model, tokens):
    """The mean of a torch model's states of one text, as a unit vector."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        mean = model(torch.tensor(tokens)[None]).last_hidden_state[0].mean(0).numpy()
    return mean / np.linalg.norm(mean)


TARGETS = {
    "all": (PROJECTIONS, r".*encoder\.layer\.\d+\..*(query|key|value|dense)"),
    "q and v": (("q", "v"), ["query", "value"]),
    "all-linear, the pooler too": (PROJECTIONS, "all-linear"),
    "one dense of three": (("o",), r".*attention\.output\.dense"),
    "two denses": (("up", "down"), r".*layer\.\d+\.(intermediate|output)\.dense"),
}


@pytest.mark.parametrize("targets", TARGETS)
def test_peft_s_adapters_give_its_vectors_here_and_ours_there(targets, tmp_path):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    ours, theirs = TARGETS[targets]
    tiny_bert.theirs(BERT).save_pretrained(tmp_path / "base")
    base = lambda: transformers.AutoModel.from_pretrained(tmp_path / "base", attn_implementation="eager").eval()
    settings = dict(task_type="FEATURE_EXTRACTION", r=3, lora_alpha=12, target_modules=theirs)
    model = peft.get_peft_model(base(), peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.2)
    model.save_pretrained(tmp_path / "theirs")
    expected = [pooled(model, text) for text in TEXTS]
    bare = base()
    assert max(np.abs(e - pooled(bare, text)).max() for e, text in zip(expected, TEXTS, strict=True)) > 1e-2

    graphdef, state = architecture.abstract(BERT, jnp.float32)
    loaded = hf.load(tmp_path / "base", BERT, nnx.to_pure_dict(state), None, jnp.float32)
    nnx.replace_by_pure_dict(state, loaded)
    read = peft_format.load_adapter(tmp_path / "theirs", nnx.merge(graphdef, state))
    config = peft_format.read_adapter_config(tmp_path / "theirs")
    assert {*config.targets} == {*ours}
    bins, vector = tiny.pack(TEXTS, SHAPE)
    np.testing.assert_allclose(tiny.encode(read, bins, SHAPE)[vector], expected, atol=1e-5)

    peft_format.save_adapter(nnx.to_pure_dict(nnx.state(read, nnx.LoRAParam)), BERT, config, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(base(), tmp_path / "ours").eval()
    hung = {name.split("encoder.")[1].split(".lora_")[0] for name, _ in back.named_parameters() if "lora_" in name}
    assert len(hung) == BERT.layers * len(ours)
    np.testing.assert_allclose([pooled(back, text) for text in TEXTS], expected, atol=1e-5)


# Dropout of hidden states


@pytest.mark.parametrize("make", [tiny_bert.encoder, tiny.decoder], ids=["bert", "decoder"])
def test_dropout_of_hidden_states_is_a_text_s_own_and_its_key_s(make):
    bins, vector = tiny.pack([text % 100 + 1 for text in TEXTS], SHAPE)
    bare = make()

    @tiny.jit
    def encode(rate_is_some, key):
        run = lambda rate: tiny.encode(bare, bins, SHAPE, dropout=Dropout(adapters=0.0, hidden=rate), dropout_key=key)
        return jnp.where(rate_is_some, run(0.2), run(0.0))[vector]

    one, other = jax.random.key(0), jax.random.key(1)
    whole = encode(False, one)
    np.testing.assert_allclose(whole, tiny.encode(bare, bins, SHAPE)[vector], atol=1e-5)  # rate 0 is none
    np.testing.assert_allclose(whole[0], whole[-1], atol=1e-5)
    dropped = encode(True, one)
    assert np.abs(dropped - whole).max(axis=1).min() > 1e-3  # of every text
    assert np.abs(dropped[0] - dropped[-1]).max() > 1e-2  # equal texts, each with a mask of its own
    np.testing.assert_array_equal(encode(True, one), dropped)
    assert np.abs(encode(True, other) - dropped).max() > 1e-2


@pytest.mark.parametrize(("name", "make"), [("bert", tiny_bert.encoder), ("decoder", tiny.decoder)])
def test_embeddings_attention_and_mlp_each_have_their_place_of_dropout(name, make, monkeypatch):
    seen, layers = set(), make().cfg.layers

    class Recorded(Noise):
        def hidden(self, x, site):
            seen.add(("embeddings" if isinstance(self.layer, int) and self.layer == layers else "layer", site))
            return super().hidden(x, site)

    monkeypatch.setattr(f"e5jax.{name}.Noise", Recorded)
    bins, _ = tiny.pack([text % 100 + 1 for text in TEXTS], SHAPE)
    rates = Dropout(adapters=0.0, hidden=0.2)
    jax.eval_shape(lambda: tiny.encode(make(), bins, SHAPE, dropout=rates, dropout_key=jax.random.key(0)))
    assert seen == {("embeddings", 0), ("layer", 0), ("layer", 1)}


def test_dropout_keeps_the_mean_and_drops_at_its_rate():
    keys_T = jax.random.split(jax.random.key(0), 4_000)
    x = jnp.ones((4_000, 8), jnp.bfloat16)
    noise = Noise(rates=Dropout(adapters=0.0, hidden=0.25), keys_T=keys_T, layer=0)
    assert noise.adapters(x, 0) is x
    masks = [np.asarray(noise.hidden(x, site), np.float32) for site in (0, 1)]
    both = Dropout(adapters=0.25, hidden=0.25)
    masks += [np.asarray(Noise(rates=both, keys_T=keys_T, layer=layer).adapters(x, 0), np.float32) for layer in (0, 1)]
    for mask in masks:
        assert mask.mean() == pytest.approx(1, abs=0.02) and (mask == 0).mean() == pytest.approx(0.25, abs=0.01)
    for i, mask in enumerate(masks):  # sites, kinds and layers draw anew
        assert all(((mask == 0) == (other == 0)).mean() < 0.7 for other in masks[:i])


# Meshes

QUERIES = 8
BATCH = tiny_bert.texts([5, 9, 16, 3, 7, 8, 2, 6] + [13, 8, 1, 15, 9, 6, 7, 16])


def loss_and_gradient(sizes, trained):
    """Of a batch on a mesh, in two chunks with layers recomputed; None: on one device, in one chunk."""
    graphdef, params, frozen = nnx.split(adapted(), trained, ...)

    def run(shape, place):
        def total(params, frozen, batch):
            model = nnx.merge(graphdef, params, frozen)
            vectors = tiny.encode(model, batch.bins, shape, remat=sizes is not None)
            queries, passages = vectors[batch.query_Q], vectors[batch.passage_P]
            return info_nce(queries, passages, batch, 0.1, Contrast())[0]

        batch = tiny.batch(BATCH[:QUERIES], BATCH[QUERIES:], shape)
        value, gradient = tiny.jit(jax.value_and_grad(total))(*place(params, frozen, batch))
        return float(value), jax.tree.map(np.array, nnx.to_pure_dict(gradient))

    if sizes is None:
        return run(BinShape(chunks=1, shards=1, rows=((16, 10), (8, 3)), slots=16), lambda *arrays: arrays)
    mesh = make_mesh(sizes)

    def place(params, frozen, batch):
        layout = batch_shardings(batch, mesh, lambda x: 1 if x.ndim == 3 else None)
        return jax.device_put((params, frozen, batch), (*shardings((params, frozen), mesh), layout))

    with jax.set_mesh(mesh):
        return run(BinShape(chunks=2, shards=shard_count(mesh), rows=((16, 1), (9, 1)), slots=7), place)


@pytest.mark.parametrize(
    ("sizes", "trained"), [((8, 1, 1), nnx.LoRAParam), ((1, 8, 1), nnx.Param)], ids=["8 copies", "split in 8"]
)
def test_loss_and_gradient_on_a_mesh_are_those_of_one_device(sizes, trained):
    value, gradient = loss_and_gradient(None, trained)
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradient)) > 0.01
    theirs, slopes = loss_and_gradient(sizes, trained)
    assert theirs == pytest.approx(value, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), slopes, gradient)
