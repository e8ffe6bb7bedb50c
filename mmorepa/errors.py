"""Errors that are the user's to mend."""


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: found, wanted, what to do."""
