"""A ledger becomes a TFDS dataset: `python -m e5jax.package --workdir runs/synthetic`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from e5jax import command, places
from e5jax.synthetic import dataset
from e5jax.synthetic.config import PackageConfig


PROG = "python -m e5jax.package"


def package(config: PackageConfig) -> Path:
    """Filter the ledger of a workdir -> the folder of the dataset, which `records.Source(path=...)` reads.

    Raises UserError for what the user can mend.
    """
    with places.output(config.output or f"{config.workdir}/dataset") as output:
        return _package(config, places.local(config.workdir), output)


def _package(config: PackageConfig, workdir: Path, output: Path) -> Path:
    folder = dataset.build(
        workdir / "ledger",
        output,
        name=config.name,
        heldout=config.heldout,
        near_duplicates=config.near_duplicates,
        check_language=config.check_language,
        max_characters=config.max_characters,
        decontaminate=config.decontaminate,
        prompt_versions=config.prompt_versions,
        beam_runner=config.beam_runner,
        processes=os.cpu_count() or 1,
        tokenizer=config.tokenizer,
        tell=lambda said: print(said, flush=True),
    )
    print(f"{folder}\ntrain on it: Source(path={str(folder)!r}, split='train')")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    return command.main(package, PackageConfig, PROG, argv, needs_file=False)


if __name__ == "__main__":
    sys.exit(main())
