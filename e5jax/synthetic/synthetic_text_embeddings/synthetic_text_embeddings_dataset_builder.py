"""Filtered examples -> a TFDS dataset in ArrayRecord files, which need no TensorFlow.

    tfds.builder("synthetic_text_embeddings/english", data_dir=..., file_format="array_record")

Preparing reads what the filters left, and asks nobody anything: an answer is paid when it enters the ledger. Shards are
written one after the other as they are read, in an order that a hash of each example's key gives: what is in memory is
that order and one shard, and the same examples make the same files.
"""

import functools
import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from e5jax.synthetic import task_types


SHARD = 5_000
"""Examples a file; TFDS holds as many in memory. About 15 MB."""
SPLITS = ("train", "heldout")
PROVENANCE = ("key", "model", "model_version", "prompt_version", "response_id", "client", "time")


def chosen(name: str, example: dict) -> bool:
    """Whether the builder config of this name has the example."""
    if name == "english":
        return example["languages"] == ["en"]
    return name in ("all", example["task_type"])


class Builder(tfds.core.ShardBasedBuilder):
    """Synthetic training examples for text embedders: task, query, positive, negatives, and where they come from."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir is the folder that `python -m e5jax.package` filtered a ledger into, with its examples.jsonl."
    )
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="all", description="Every type and language."),
        tfds.core.BuilderConfig(name="english", description="Query and passages in English."),
        *(tfds.core.BuilderConfig(name=name, description=f"Type {name} alone.") for name in task_types.ALL),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {
            "task_type": text(),
            "languages": tfds.features.Sequence(text()),
            "task": text(),
            "query": text(),
            "positive": text(),
            "negatives": tfds.features.Sequence(text()),
            "provenance": tfds.features.FeaturesDict({name: text() for name in PROVENANCE}),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=None,
            disable_shuffling=True,
            license="Output of a language model: its provider's terms apply. See README.md beside the data.",
        )

    def _shard_iterators_per_split(self, dl_manager):
        paths = sorted(Path(dl_manager.manual_dir).glob("examples*.jsonl"))
        found = {split: _order(paths, self.builder_config.name, split) for split in SPLITS}
        return {
            split: [functools.partial(_read, paths, places[i : i + SHARD]) for i in range(0, len(places), SHARD)]
            for split, places in found.items()
            if places  # TFDS knows no empty split
        }


def _order(paths: list[Path], name: str, split: str) -> list[tuple[int, int]]:
    """(file, offset) of the examples of a split, in the order of their keys' hashes."""
    hashes, files, offsets = array("Q"), array("L"), array("Q")
    for number, path in enumerate(paths):
        offset = 0
        with path.open("rb") as lines:
            for line in lines:
                example = json.loads(line)
                if example["split"] == split and chosen(name, example):
                    digest = hashlib.blake2b(example["key"].encode(), digest_size=8).digest()
                    hashes.append(int.from_bytes(digest))
                    files.append(number)
                    offsets.append(offset)
                offset += len(line)
    return [(files[i], offsets[i]) for i in sorted(range(len(hashes)), key=hashes.__getitem__)]


def _read(paths: list[Path], places: list[tuple[int, int]]) -> Iterator[tuple[str, dict]]:
    opened = [path.open("rb") for path in paths]
    try:
        for file, offset in places:
            opened[file].seek(offset)
            example = json.loads(opened[file].readline())
            fields = {name: example[name] for name in ("task_type", "languages", "task", "query", "positive")}
            provenance = {name: (example | example["provenance"])[name] for name in PROVENANCE}
            yield example["key"], {**fields, "negatives": example["negatives"], "provenance": provenance}
    finally:
        for file in opened:
            file.close()
