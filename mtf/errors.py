"""The errors that a user is meant to read.

Every message names the field, the value that was found and the way out. The command line prints them
without a traceback; anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class MtfError(Exception):
    """A failure with an explanation (exit code 1)."""


class InputError(MtfError):
    """Something that was handed in cannot be used as it is: a file, a column, a value, a setting."""


class IntegrityError(MtfError):
    """Stored bytes are not what their name, hash or manifest says they are."""


class ConflictError(MtfError):
    """Somebody else wrote first (compare-and-swap, create-only put, lock)."""


class NotFoundError(MtfError):
    """An object, version, day or document that was asked for does not exist."""
