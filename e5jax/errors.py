"""The two ways for a command to end badly: the user can mend it, or the work itself broke down."""

LONGEST = 2000
"""Characters of a message: what is wrong may be a file's whole content."""


class _Said(Exception):
    def __str__(self):
        said = super().__str__()
        return said if len(said) <= LONGEST else f"{said[: LONGEST // 2]} … {said[-LONGEST // 2 :]}"


class UserError(_Said, ValueError):
    """A mistake in a config, a data file or a model folder.

    The message says what is wrong, where (file:line or field) and what to do. Commands print it without a
    traceback and exit with 2.
    """


class FailedError(_Said, RuntimeError):
    """The work itself broke down; commands print it and exit with 1."""
