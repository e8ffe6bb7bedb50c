"""Errors that are the user's to mend, and how they are put into one line."""


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: found, wanted, what to do."""


def first_line(error: Exception) -> str:
    """The first line of what an exception says; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
