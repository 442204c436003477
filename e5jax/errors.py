"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake in a config, a data file or a model folder.

    The message says what is wrong, where (file:line or field) and what to do. Commands print it without a
    traceback and exit with 2.
    """
