"""The `ivl3` command: one file per subcommand."""


class UsageError(ValueError):
    """A mistake in how a command was called or configured; the command ends with exit code 2."""
