"""Hand a trained model on: `python -m e5jax.export --checkpoint D --output O [--form merged|adapter]`.

merged    config.json, *.safetensors        a whole model, adapters added into its weights
adapter   adapter_config.json, adapter_*    PEFT's files; `base/` beside them where only e5jax could open the base
both      tokenizer*, modules.json, 1_Pooling/, sentence_bert_config.json, config_sentence_transformers.json, README.md

PEFT, transformers and sentence-transformers take an adapter's base for a hub name or a path from where they run. A base
on this machine is therefore named by its absolute path: whoever moves it corrects `base_model_name_or_path` in
adapter_config.json. e5jax itself finds a `base/` inside the folder wherever the folder lies.
"""

import contextlib
import dataclasses
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import huggingface_hub
from flax import nnx
from safetensors import SafetensorError

from e5jax import checkpoint, command, hf, model_card, models, peft_format, places, st_format
from e5jax import workdir as workdirs
from e5jax.config import ExportConfig
from e5jax.errors import FailedError, UserError
from e5jax.formats import Tokenizer
from e5jax.logbook import read_rows
from e5jax.pooling import Kind


PROG = "python -m e5jax.export"
MAX_LENGTH = 512  # of a model whose files do not say, as for the Encoder
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """A model that has been read and can be written."""

    write_weights: Callable[[Path], None]
    """Weights and their config into a folder."""
    tokenizer: Tokenizer
    dim: int
    pooling: Kind
    max_length: int
    dtype: str
    """Of the weights; for adapters, of the base that they were trained beside."""
    prompts: dict[str, str]
    digest: str
    """As evaluations record it."""


def export(config: ExportConfig) -> Path:
    """Write what the config says -> the new folder, whole or not at all.

    Raises UserError for what the user can mend, FailedError where the hub does not take the folder.
    """
    with places.output(config.output) as output:
        return _export(config, output.absolute())


def _export(config: ExportConfig, output: Path) -> Path:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} is there already and not empty: choose another --output")
    token = None if config.push_to_hub is None else hub_token(config.push_to_hub)
    results = None if config.results is None else model_card.read_results(places.local(config.results))
    run = find_run(checkpoint.brought(config.checkpoint))
    parts = read_merged(config, run) if config.form == "merged" else read_adapter(config, run, output)
    if parts.pooling == "latent":
        raise UserError("latent pooling has no place in other libraries' files: only e5jax reads such a model")
    measured = (results or {}).get("identity", {}).get("digest")
    if measured not in (None, parts.digest):
        raise UserError(f"{config.results} measured another model, {results['model']}: its scores are not this one's")
    card = model_card.render(
        name=config.push_to_hub or output.name,
        form=config.form,
        license=config.license,
        origin=run.config["model"].get("base") if run else config.checkpoint,
        dim=parts.dim,
        pooling=parts.pooling,
        max_length=parts.max_length,
        dtype=parts.dtype,
        prompts=parts.prompts,
        run=run,
        results=results,
    )
    with written_aside(output) as aside:
        parts.write_weights(aside)
        parts.tokenizer.save(aside, parts.max_length)
        st_format.write(aside, parts.dim, parts.pooling, parts.max_length, parts.prompts)
        (aside / "README.md").write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {config.form}, {size / 1e6:,.1f} MB", flush=True)
    if config.push_to_hub is not None:
        push(output, config.push_to_hub, token)
    return output


def find_run(path: Path) -> model_card.Run | None:
    """The run and the step that a path names; None where it names another kind of model."""
    if not models.is_run(path):
        return None
    workdir, step_dir = checkpoint.find_step(path)
    step = int(step_dir.name)
    rows = {row["step"]: row for row in read_rows(workdir / "metrics.jsonl") if "eval/ndcg@10" in row}
    return model_card.Run(
        workdir=workdir,
        step_dir=step_dir,
        config=workdirs.read_config(workdir),
        step=step,
        evaluations={at: rows[at] for at in (0, step) if at in rows},
    )


def read_merged(config: ExportConfig, run: model_card.Run | None) -> Parts:
    """A whole model. To float32 it is widened before adapters are added, to fewer bits rounded afterwards."""
    widened = "float32" if config.dtype == "float32" else None
    opened = models.open_model(config.checkpoint, revision=None, mesh=None, dtype=widened)
    dtype, cfg = config.dtype or opened.dtype.name, opened.model.cfg
    max_length = min(opened.max_length or MAX_LENGTH, cfg.longest or math.inf)
    ids = special_ids(opened.tokenizer)
    # Rotary positions have no end: without a base that states one, texts as long as those of training are promised.
    kept = {"max_position_embeddings": max_length} | ids | opened.kept

    def write_weights(directory):
        hf.save(nnx.to_pure_dict(nnx.state(opened.model)), cfg, dtype, directory, kept)

    return Parts(
        write_weights=write_weights,
        tokenizer=opened.tokenizer,
        dim=cfg.dim,
        pooling=cfg.pooling,
        max_length=max_length,
        dtype=dtype,
        prompts=st_format.name_prompts(opened.prompts, run.tasks if run else ()),
        digest=opened.digest,
    )


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids that config.json repeats from the tokenizer; padding is masked, so the end serves for it."""
    begin = {"bos_token_id": tokenizer.prefix[0]} if tokenizer.prefix else {}
    return begin | {"eos_token_id": tokenizer.suffix[-1], "pad_token_id": tokenizer.suffix[-1]}


def read_adapter(config: ExportConfig, run: model_card.Run | None, output: Path) -> Parts:
    """The adapters of a run. Raises UserError for a model that has none."""
    if run is None:
        raise UserError(f"{config.checkpoint}: --form adapter takes a run of e5jax or one of its checkpoints")
    if run.config["lora"] is None:
        raise UserError(f"{run.workdir} trained every weight and has no adapter: export it with --form merged")
    if config.dtype is not None:
        raise UserError("dtype: adapters are float32; only --form merged has another dtype")
    named = base_for_others(run)
    if config.push_to_hub is not None and (named is None or Path(named).is_absolute()):
        raise UserError("--push-to-hub: the adapter's base is on this machine alone; push --form merged instead")
    source, settings = run.config["model"], run.config["lora"]
    tokenizer = Tokenizer.load(run.workdir / "tokenizer")
    adapters = models.read_adapters(run.step_dir, run.config, None)
    base, kept = (None, {}) if named else models.open_base(run.workdir, run.config, None, source["dtype"])
    adapter_config = peft_format.AdapterConfig(
        rank=settings["rank"],
        alpha=settings["alpha"],
        dropout=settings["dropout"],
        targets=tuple(settings["targets"]),
        base=named or str(output / peft_format.OWN_BASE),
        revision=source.get("revision"),
    )
    max_length = run.config["data"]["max_length"]

    def write_weights(directory):
        state = nnx.to_pure_dict(nnx.state(adapters, nnx.LoRAParam))
        peft_format.save_adapter(state, adapters.cfg, adapter_config, directory)
        if base is not None:
            ids = {"max_position_embeddings": max_length} | special_ids(tokenizer) | kept
            own = directory / peft_format.OWN_BASE
            hf.save(nnx.to_pure_dict(nnx.state(base)), base.cfg, source["dtype"], own, ids)
            tokenizer.save(own)

    return Parts(
        write_weights=write_weights,
        tokenizer=tokenizer,
        dim=adapters.cfg.dim,
        pooling=adapters.cfg.pooling,
        max_length=max_length,
        dtype=source["dtype"],
        prompts=st_format.name_prompts(models.stored_prompts(run.config), run.tasks),
        digest=checkpoint.digest(run.step_dir),
    )


def base_for_others(run: model_card.Run) -> str | None:
    """The hub name or absolute folder under which PEFT finds a run's base; None where only e5jax can open it.

    Raises UserError for a folder that has changed since.
    """
    if (run.workdir / "base").is_dir():
        return None
    source = run.config["model"]
    if source["keep_layers"] is not None or source["causal"] is not None:
        return None  # what it was trained on is not what those files are
    name = source["base"]
    path = Path(name).expanduser()
    if models.is_run(path):
        return None
    if not path.is_dir():
        return name
    files = st_format.read(path)
    directory = files.transformer
    if (directory / "adapter_config.json").is_file():
        return None
    if models.folder_digest(files) != run.config["run"]["base"]:
        raise UserError(f"{run.workdir} was trained on {name} as it was then; those files have changed since")
    return str(directory.resolve())


@contextlib.contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write into; it takes that place when the block ends well, and is removed if not."""
    aside = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        aside.mkdir(parents=True)
        yield aside
        aside.replace(output)  # over an empty folder, too
    except (OSError, SafetensorError) as error:
        raise UserError(f"{output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def hub_token(repository: str) -> str:
    """The token of the environment. Raises UserError for none, or a repository that is not OWNER/NAME."""
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"--push-to-hub takes OWNER/NAME, not {repository!r}")
    if not (token := os.environ.get("HF_TOKEN")):
        raise UserError("--push-to-hub needs a token with write access in the environment variable HF_TOKEN")
    return token


def push(folder: Path, repository: str, token: str) -> None:
    """Upload a folder to the hub; a repository that is not there yet is created, private.

    Raises UserError for one that holds files already, FailedError where the hub refuses. Neither shows the token.
    """
    try:
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repository, private=True, exist_ok=True)
        if there := set(api.list_repo_files(repository)) - {".gitattributes"}:
            raise UserError(f"{repository} holds files already ({sorted(there)[0]}, ...): push to a new repository")
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Export of {folder.name}")
    except UserError:
        raise
    except Exception as error:  # the hub's own, and whatever its HTTP library raises
        said = str(error).replace(token, "HF_TOKEN")
        raise FailedError(f"{folder} is written, but {repository} did not take it: {said}") from None
    print(f"https://huggingface.co/{repository} has it; its visibility is set there", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(export, ExportConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
