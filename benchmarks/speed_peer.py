"""The peer of benchmarks/run.py, as a worker: sentence-transformers, PEFT and transformers' attention.

A step is CachedMultipleNegativesRankingLoss forward and backward, clipping by the global norm, and torch's AdamW, on
features that are prepared. The base is frozen, in float32 or bfloat16; PEFT keeps its adapters in float32.
"""

import gc
import os
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks import speed_data
from benchmarks.speed_worker import serve, timed


RANK, ALPHA = 16, 32
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEMPERATURE = 0.02


class Peer:
    """Models by dtype, and what is to be timed by name."""

    def __init__(self):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.models = {}
        self.cases = {}

    def write_model(self, folder: str, sizes: dict, dtype: str, seed: int) -> None:
        """A Mistral with random weights in FOLDER, adapters with B not zero in FOLDER/adapter.

        A folder without a tokenizer gets one that knows no words: batches are tokens already.
        """
        import peft
        import tokenizers
        import transformers

        torch.manual_seed(seed)
        config = transformers.MistralConfig(
            vocab_size=sizes["vocabulary"],
            hidden_size=sizes["dim"],
            intermediate_size=sizes["hidden"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["kv_heads"],
            head_dim=sizes["head_dim"],
            sliding_window=None,
            initializer_range=0.05,  # large enough for vectors to differ
            use_cache=False,
        )
        model = transformers.AutoModel.from_config(config, dtype=getattr(torch, dtype))
        model.save_pretrained(folder)
        if not (Path(folder) / "tokenizer.json").exists():
            wordless = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
            transformers.PreTrainedTokenizerFast(
                tokenizer_object=wordless, unk_token="<unk>", pad_token="</s>"
            ).save_pretrained(folder)
        lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=PROJECTIONS)
        adapted = peft.get_peft_model(model, lora)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01)
        adapted.peft_config["default"].base_model_name_or_path = folder
        adapted.save_pretrained(Path(folder) / "adapter")

    def _model(self, folder, dtype, adapted, device, attention):
        """-> (SentenceTransformer, its adapters' values at the start)."""
        key = folder, dtype, adapted, device, attention
        if key in self.models:
            return self.models[key]
        from peft import PeftModel
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

        transformer = Transformer(
            folder,
            model_kwargs={"dtype": getattr(torch, dtype), "attn_implementation": attention},
            max_seq_length=speed_data.LONGEST,
        )
        pooling = Pooling(transformer.get_embedding_dimension(), "lasttoken")
        model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=device)
        start = {}
        if adapted:  # they are hung into the modules where they are
            PeftModel.from_pretrained(transformer.auto_model, Path(folder) / "adapter", is_trainable=True)
            model.train()
            start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.models[key] = model, start
        return self.models[key]

    def train(
        self,
        name: str,
        folder: str,
        batch: str,
        dtype: str,
        mini_batch: int,
        budget: int | None,
        device: str,
        attention: str,
    ) -> dict[str, float]:
        """Prepare a step and take it once -> its loss, gradient norm, seconds, and the tokens that it pads to.

        `mini_batch`: texts encoded at once; `budget`: as many as have so many tokens, instead.
        """
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        model, start = self._model(folder, dtype, True, device, attention)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key in start:
                    parameter.copy_(start[key])
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.1)
        loss_of = CachedMultipleNegativesRankingLoss(
            model, scale=1 / TEMPERATURE, mini_batch_size=mini_batch, mini_batch_num_tokens=budget
        )
        triples, _ = speed_data.read_batch(batch)
        columns = (triples.queries, triples.positives, triples.negatives)
        features = [{key: value.to(device) for key, value in _padded(texts).items()} for texts in columns]
        facts = {}

        def step():
            optimizer.zero_grad()
            loss = loss_of(features, None)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            facts.update(loss=loss.item(), grad_norm=norm.item())  # which waits for the device
            if device != "cpu":
                torch.cuda.synchronize()

        seconds = timed(step)
        self.cases[name] = step
        return {**facts, "seconds": seconds, "adapters": len(trained), "threads": torch.get_num_threads()}

    def encode(
        self, name: str, folder: str, texts: list[str], prompt: str, dtype: str, batch_size: int, vectors: str
    ) -> dict[str, float]:
        """Prepare encoding and do it once -> its seconds; the vectors go to the file `vectors`."""
        model, _ = self._model(folder, dtype, False, "cpu", "sdpa")
        encode = lambda: model.encode(texts, prompt=prompt or None, batch_size=batch_size, show_progress_bar=False)
        out = []
        seconds = timed(lambda: out.append(encode()))
        np.save(vectors, np.asarray(out[0], np.float32))
        self.cases[name] = encode
        return {"seconds": seconds}

    def run(self, name: str) -> float:
        """Seconds of one turn."""
        return timed(self.cases[name])

    def forget(self) -> None:
        """Let go of all models and cases."""
        self.models.clear()
        self.cases.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def roofline(self, dtype: str, shapes: list[list[int]], rounds: int) -> float:
        """The most FLOP/s of a product [M, K] x [K, N], of the shapes and rounds."""
        best = 0.0
        for m, k, n in shapes:
            x, w = torch.randn(m, k).to(getattr(torch, dtype)), torch.randn(n, k).to(getattr(torch, dtype))
            product = lambda x=x, w=w: torch.nn.functional.linear(x, w)
            product()
            best = max(best, 2 * m * k * n / min(timed(product) for _ in range(rounds)))
        return best


def _padded(texts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Padded on the right to the longest, as its own collator does."""
    rows = [torch.tensor(text) for text in texts]
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": pad(rows), "attention_mask": pad([torch.ones_like(row) for row in rows])}


def main() -> int:
    """Serve."""
    peer = Peer()
    names = ("write_model", "train", "encode", "run", "roofline", "forget")
    return serve({name: getattr(peer, name) for name in names})


if __name__ == "__main__":
    sys.exit(main())
