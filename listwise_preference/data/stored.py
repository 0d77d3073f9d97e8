"""Records in a file that is mapped into memory.

A process then holds a few numbers of each; the texts stay on the disk and in the machine's cache of it, once for all
processes that map the file, those that load records included.
"""

import json
import mmap
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Generic, Self, TypeVar, overload

T = TypeVar("T")
Make = Callable[[Any, Sequence[int]], T]

# A path of the file system may hold bytes that are no UTF-8; Python spells them as halves of characters.
_ERRORS = "surrogateescape"


class RowWriter:
    """JSON values, one behind the other in a file."""

    def __init__(self, file: Path | None) -> None:
        """A file without a name is gone with the last process that maps it, whatever ends that."""
        self._file = file or Path()
        self._stream = TemporaryFile() if file is None else file.open("w+b")  # noqa: SIM115 - this is one
        self._ends = array("q", [0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, value: Any) -> int:
        """Write a value and return its number, from 0."""
        content = json.dumps(value, ensure_ascii=False).encode("utf-8", _ERRORS)
        self._stream.write(content)
        self._ends.append(self._ends[-1] + len(content))
        return len(self._ends) - 2

    def stored(self, numbers: Sequence[int], boxes: Iterable[int], make: "Make[T]") -> "StoredRows[T]":
        """Those of the values, once all are written; see :class:`StoredRows`."""
        self._stream.flush()
        starts, ends = (array("q", [self._ends[number + more] for number in numbers]) for more in (0, 1))
        return StoredRows(self._file, _mapped(self._stream), starts, ends, array("q", boxes), make)


class StoredRows(Sequence[T], Generic[T]):
    """Some of the values in such a file, each made into an object when it is asked for.

    Args:
        file: where they are, as long as it is there.
        content: what is in it.
        starts: of each value its first byte.
        ends: and the byte behind its last.
        boxes: four numbers for each, or none at all.
        make: the object of a value and its numbers.
    """

    def __init__(
        self,
        file: Path,
        content: mmap.mmap | bytes,
        starts: "array[int]",
        ends: "array[int]",
        boxes: "array[int]",
        make: "Make[T]",
    ) -> None:
        self._file, self._content, self._starts, self._ends, self._boxes, self._make = (
            file,
            content,
            starts,
            ends,
            boxes,
            make,
        )

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredRows[T]": ...
    def __getitem__(self, index: int | slice) -> "T | StoredRows[T]":
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        index = range(len(self))[index]
        value = json.loads(self._content[self._starts[index] : self._ends[index]].decode("utf-8", _ERRORS))
        return self._make(value, self._boxes[4 * index : 4 * index + 4])

    def take(self, indices: Sequence[int]) -> "StoredRows[T]":
        """Those objects, in that order."""
        starts, ends = (array("q", [all_[index] for index in indices]) for all_ in (self._starts, self._ends))
        boxes = array("q", [self._boxes[4 * index + edge] for index in indices if self._boxes for edge in range(4)])
        return StoredRows(self._file, self._content, starts, ends, boxes, self._make)

    @classmethod
    def none(cls) -> "StoredRows[T]":
        """No objects at all."""

        def make(value: Any, box: Sequence[int]) -> T:
            raise AssertionError("there is none")

        return cls(Path(), b"", array("q"), array("q"), array("q"), make)

    def save(self, index: Path) -> None:
        """Write which values of the file they are, for :meth:`open` in other processes."""
        with index.open("wb") as stream:
            stream.write(f"{self._file.name if len(self) else ''}\n{len(self)}\n".encode())
            for numbers in (self._starts, self._ends, self._boxes):
                numbers.tofile(stream)

    @classmethod
    def open(cls, index: Path, make: "Make[T]") -> "StoredRows[T]":
        """What another process has saved; the file of the values lies beside it."""
        name, count, content = index.read_bytes().split(b"\n", 2)
        if not name:
            return cls.none()
        numbers, size = array("q", content), int(count)
        file = index.with_name(name.decode())
        with file.open("rb") as stream:
            values = _mapped(stream)
        return cls(file, values, numbers[:size], numbers[size : 2 * size], numbers[2 * size :], make)

    def __getstate__(self) -> dict[str, Any]:
        # A process that is started anew gets the whole: the file may be gone.
        return {**self.__dict__, "_content": self._content[:]}


def some(values: Sequence[T], indices: Sequence[int]) -> Sequence[T]:
    """Those of the values, in that order."""
    return values.take(indices) if isinstance(values, StoredRows) else [values[index] for index in indices]


def _mapped(stream: IO[bytes]) -> mmap.mmap | bytes:
    empty = not os.fstat(stream.fileno()).st_size
    return b"" if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
