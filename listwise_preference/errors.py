"""Errors that a user can correct: one family, caught in one place (``cli.run_program``).

``str(error)`` is the message as the user reads it: the file, the record, what is wrong and what to do.
"""


class UserError(Exception):
    """An error that the user can correct."""


class DataError(UserError):
    """A file, or a record in it, cannot be used as it is."""


class ImageError(UserError):
    """An image cannot be read; the message names the file and the cause."""


class ModelError(UserError):
    """A checkpoint or an adapter cannot be used; the message says which and why."""


class Stopped(BaseException):
    """The program ends because it was asked to; the message says how to go on, ``status`` is what it exits with.

    No Exception, as KeyboardInterrupt is none: a signal may raise it anywhere.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
