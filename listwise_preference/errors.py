"""Errors that a user can correct: one family, caught in one place (``cli.run_program``).

``str(error)`` is the message as the user reads it: the file, the record, what is wrong and what to do.
"""

_LONGEST_LINE, _LONGEST_MESSAGE = 800, 2_000  # characters


def shortened(message: str) -> str:
    """A message of at most 2,000 characters: lines, and then the whole, lose their middle.

    The start names file and record, the end says what to do; between them a file may have put anything.
    """
    lines = "\n".join(_cut(line, _LONGEST_LINE) for line in message.split("\n"))
    return _cut(lines, _LONGEST_MESSAGE)


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    gap = " ... "
    end = (longest - len(gap)) // 3
    return text[: longest - len(gap) - end] + gap + text[-end:]


class UserError(Exception):
    """An error that the user can correct.

    Attributes:
        of_one_process: whether only one of the processes that a launcher started has met it; else all of them have, and
            the first one speaks.
    """

    of_one_process = False

    def __str__(self) -> str:
        return shortened(super().__str__())


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
