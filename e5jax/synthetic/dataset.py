"""A ledger -> filters -> the TFDS dataset, with its card, statistics, pictures and checksums beside the shards."""

import contextlib
import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from e5jax import files
from e5jax.errors import FailedError, UserError
from e5jax.synthetic import contamination, filters, statistics, task_types
from e5jax.synthetic.answers import Rules


CHECKSUMS = "SHA256SUMS"


def build(
    ledger_folder: Path,
    output: Path,
    *,
    name: str,
    heldout: float,
    near_duplicates: float,
    check_language: bool,
    max_characters: int,
    decontaminate: Sequence[str],
    prompt_versions: Sequence[str],
    beam_runner: str | None,
    processes: int,
    tokenizer: str | None,
    tell: Callable[[str], object],
) -> Path:
    """Package the answers of a ledger -> the version folder of the dataset, which `records.Source(path=...)` reads.

    The filters' output, examples.jsonl and rejected.jsonl, stays in filtered/ beside the ledger. `tokenizer`: a
    tokenizer.json to count lengths with, else words. An earlier dataset of that name is replaced. Raises UserError
    where no example is left, naming what became of them.
    """
    known = ("all", "english", *task_types.ALL)
    if name not in known:
        raise UserError(f"no dataset named {name!r}; there are {', '.join(known)}")
    filtered = ledger_folder.parent / "filtered"
    filtered.mkdir(parents=True, exist_ok=True)
    evaluation = None
    if decontaminate:
        evaluation = str(filtered / "evaluation.npy")
        tell(f"{contamination.write(decontaminate, Path(evaluation)):,} texts of evaluation sets to keep out")
    rules = Rules(
        prompt_versions={kind.name: tuple(prompt_versions) or (kind.version,) for kind in task_types.ALL.values()},
        check_language=check_language,
        max_characters=max_characters,
        evaluation=evaluation,
        heldout=heldout,
    )
    tell(f"filtering {ledger_folder}")
    if beam_runner is None:
        filters.run(ledger_folder, filtered, rules, near_duplicates, processes)
    else:
        from e5jax.synthetic import beam_pipeline

        beam_pipeline.run(str(ledger_folder), str(filtered), rules, near_duplicates, beam_runner)
    tell("counting")
    counted = statistics.count(filtered, name)
    if "train" not in counted.splits:
        raise UserError(f"{ledger_folder}: no example is left to train on ({counted.said()})")
    tell(f"writing {counted.said()}")
    folder = _prepare(filtered, output, name)
    statistics.write(folder, counted, tokenizer)
    write_checksums(folder)
    return folder


def _prepare(filtered: Path, output: Path, name: str) -> Path:
    import tensorflow_datasets as tfds

    from e5jax.synthetic.synthetic_text_embeddings import Builder

    tfds.disable_progress_bar()
    builder = Builder(data_dir=output, config=name, file_format="array_record")
    folder = Path(builder.data_dir)
    if (folder / "dataset_info.json").exists():
        shutil.rmtree(folder)  # it can be made again: what was paid for is in the ledger
        builder = Builder(data_dir=output, config=name, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=filtered)
    try:
        # TFDS wants a folder for downloads, which there are none of, and prints where the data are.
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_dir=downloads, download_config=config)
    except OSError as error:
        raise FailedError(f"{output}: the dataset cannot be written: {error}") from error
    return folder


def write_checksums(folder: Path) -> None:
    """SHA256SUMS of everything in the folder, as `sha256sum --check` reads them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    lines = []
    for path in paths:
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}\n")
    files.write_text(folder / CHECKSUMS, "".join(lines))
