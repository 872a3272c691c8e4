"""Files that appear whole or not at all, and what the operating system's errors mean."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from multibackend.errors import FileError

__all__ = ["cause_of", "replace_file"]

_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space, or keep fewer checkpoints",
    errno.EDQUOT: "the disk quota is used up; free some space, or keep fewer checkpoints",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "permission denied; check who owns the directory and what lies in it",
    errno.EPERM: "permission denied; check who owns the directory and what lies in it",
    errno.ENOENT: "the directory has vanished; something removed it while the run was going on",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EEXIST: "a file lies there, or a link that leads nowhere; remove it, or choose another directory",
    errno.EISDIR: "it is a directory, not a file",
    errno.ELOOP: "it is a symbolic link, which is not followed; remove it",
    errno.EFBIG: "the file would be larger than is allowed here (see `ulimit -f`)",
    errno.EIO: "the device reports an input/output error; what it holds may be lost",
    errno.ESTALE: "the network file system has dropped the directory",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter one",
}


def cause_of(error: OSError | ValueError) -> str:
    """Say what an error of a call that takes a path means, and what helps.

    >>> cause_of(OSError(errno.ENOSPC, "No space left on device"))
    'the disk is full; free some space, or keep fewer checkpoints ([Errno 28] No space left on device)'
    """
    if not isinstance(error, OSError):
        return str(error)  # Python's own, of a path with a null character
    cause = _CAUSES.get(error.errno or 0, error.strerror or "")
    return f"{cause} ({error})"


def replace_file(path: Path, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a file, in place of one that is there, so that it appears whole or not at all.

    Missing directories are made. Nothing that lies beside it is written through, links included.

    Raises:
        FileError: it cannot be written; what was there is untouched.
    """
    # beside the file, because only within a file system does one replace another at once; random,
    # because tests that run in parallel may write one file
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # exclusive: whatever lies there under this name is somebody else's
        with temporary.open("xb") as file:
            file.writelines(pieces)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be written: {cause_of(error)}", path=path) from error
    finally:
        with suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
