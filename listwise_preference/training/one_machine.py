"""A folder that one process of a machine fills for all of those that a launcher started there. Imports no torch.

So that a million records are read and checked once, and lie in the machine's memory once.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from listwise_preference.errors import DataError, Stopped

_PATIENCE = 1800.0  # seconds until the process that fills it must have begun; torch.distributed waits as long
_COMPLETE = "complete"


def is_shared() -> bool:
    """Whether a launcher says that other processes of the run are on this machine (``LOCAL_WORLD_SIZE``)."""
    return os.environ.get("LOCAL_WORLD_SIZE", "1") != "1" and os.name != "nt"


@contextmanager
def filled_once(fill: Callable[[Path], None]) -> Iterator[Path]:
    """The folder, deleted at the end of the process that has filled it; what is mapped from it stays.

    Raises:
        DataError: there is no room for the folder.
        Stopped: the process that should have filled it has failed, and says why itself.
    """
    # Also of two launchers on one machine, as when several machines are tried out on one.
    where = "-".join(os.environ.get(name, "0") for name in ("MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"))
    folder = Path(tempfile.gettempdir()) / f"lpoi-{os.getuid()}-{where}"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        yield from _filled(folder, fill)
    else:
        _wait(folder)
        yield folder


def _filled(folder: Path, fill: Callable[[Path], None]) -> Iterator[Path]:
    import fcntl

    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed, with the same address
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror}; TMPDIR names another place") from None
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fill(folder)
            (folder / _COMPLETE).touch()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: Path) -> None:
    """Until it is complete. Its lock is held as long as the process that fills it lives."""
    given_up, begun = time.monotonic() + _PATIENCE, False
    while True:
        locked = _is_locked(folder)
        if locked and (folder / _COMPLETE).exists():
            return
        if (begun and not locked) or time.monotonic() > given_up:
            raise Stopped("ended, since the process that reads the data for this machine has ended", 1)
        begun = begun or locked
        time.sleep(0.1)


def _is_locked(folder: Path) -> bool:
    import fcntl

    try:
        if folder.stat().st_uid != os.getuid():
            return False
        with (folder / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:
        pass
    return False
