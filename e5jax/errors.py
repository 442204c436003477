"""The two ways for a command to end badly: the user can mend it, or the work itself broke down."""


class UserError(ValueError):
    """A mistake in a config, a data file or a model folder.

    The message says what is wrong, where (file:line or field) and what to do. Commands print it without a
    traceback and exit with 2.
    """


class FailedError(RuntimeError):
    """The work itself broke down; commands print it and exit with 1."""
