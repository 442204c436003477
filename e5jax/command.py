"""What every command does around its work: a config from a file and the command line, plain logs, exit codes.

    python -m e5jax.train --config configs/quickstart.py --optim.peak-lr 1e-4

The file has `get_config()`, which returns a frozen dataclass, and is the run; overrides are for trying things out. What
a run stores is JSON, never code.
"""

import argparse
import dataclasses
import difflib
import errno
import json
import logging
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from e5jax.errors import FailedError, UserError


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
"""What is the disk's or the administrator's doing, and no mistake of the program."""


def main(
    work: Callable[[Any], object], config_type: type, prog: str, argv: Sequence[str] | None, *, needs_file: bool
) -> int:
    """Parse `argv` (None: the command line) and run `work(config)` -> `exit_code` of it."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("e5jax").setLevel(logging.INFO)
    return exit_code(lambda: work(parse(sys.argv[1:] if argv is None else argv, prog, config_type, needs_file)))


def exit_code(work: Callable[[], object]) -> int:
    """Run `work` -> 0, 2 (the user can mend it), 1 (it failed) or 130 (Ctrl-C), said without a traceback."""
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FailedError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def load_config(path: str) -> Any:
    """What `get_config()` of a config file returns."""
    if not Path(path).is_file():
        near = difflib.get_close_matches(path, map(str, Path(path).parent.glob("*.py")), n=1)
        raise UserError(f"no config file {path}" + (f"; did you mean {near[0]}?" if near else ""))
    folder = Path(path).resolve().parent
    before = sys.path[:]
    sys.path[:0] = [str(folder), str(folder.parent)]  # a config may build on its neighbour, or on one a folder above
    try:
        names = runpy.run_path(path)
        if "get_config" not in names:
            raise UserError(f"{path} has no get_config()")
        config = names["get_config"]()
    except UserError:
        raise
    except Exception as error:  # whatever a person's Python raises
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = before
    if not dataclasses.is_dataclass(config):
        raise UserError(f"{path}: get_config() returns {type(config).__name__}, not a config of e5jax")
    return config


def parse(argv: Sequence[str], prog: str, config_type: type, needs_file: bool) -> Any:
    """`--config configs/x.py --optim.peak-lr 1e-4` -> a validated config. Exits with 2 on a wrong word."""
    files = argparse.ArgumentParser(add_help=False, prog=prog)
    files.add_argument("--config", metavar="FILE.py")
    known, rest = files.parse_known_args(argv)
    # tyro suggests the right name for `--nmae value`, but not for `--nmae=value`.
    rest = [part for arg in rest for part in (arg.split("=", 1) if arg[:2] == "--" else [arg])]
    if known.config is not None:
        default = load_config(known.config)
        if not isinstance(default, config_type):
            raise UserError(f"{known.config}: {type(default).__name__} is for another command than {prog}")
        return tyro.cli(type(default), default=default, args=rest, prog=f"{prog} --config {known.config}")
    if not needs_file:
        about = f"{config_type.__doc__}\n\n--config FILE.py, whose get_config() returns all of these, may come first."
        return tyro.cli(config_type, args=rest, prog=prog, description=about)
    asked = {"-h", "--help"} & set(rest)
    print(
        f"usage: {prog} --config FILE.py [--FIELD VALUE ...]\n\n"
        "FILE.py has get_config(); configs/ holds some to start from.\n"
        f"{prog} --config FILE.py --help lists its fields.",
        file=sys.stdout if asked else sys.stderr,
    )
    sys.exit(0 if asked else 2)


def to_json(config: Any) -> dict:
    """A config as plain JSON values; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
