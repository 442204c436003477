"""What every command does around its work: plain log lines, and mistakes turned into exit codes."""

import logging
import sys
from collections.abc import Callable, Sequence

from e5jax.errors import FailedError, UserError


def main(work: Callable[[Sequence[str]], object], argv: Sequence[str] | None) -> int:
    """Run `work(argv)`; -> 0, 2 (the user can mend it), 1 (it failed) or 130 (Ctrl-C)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    logging.getLogger("e5jax").setLevel(logging.INFO)
    try:
        work(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FailedError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
