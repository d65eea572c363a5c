"""The SQLite file behind a ledger: how it is opened, brought up to date, and what its errors mean to a person.

Where it lies decides how it is kept. On a local disk it is in write-ahead mode: others may read while a run writes.
That mode needs memory shared between processes, which network file systems do not have; there the one writer holds
the file alone (``locking_mode=EXCLUSIVE``, rollback journal), and others wait until the run has ended.
"""

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from medseq.errors import OutputError
from medseq.inference.ledger_schema import MIGRATIONS, VERSION

__all__ = ["connect", "damaged", "is_network", "migrate", "no_run", "require_known_version"]

_NETWORK = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|afs|9p|lustre|gpfs|beegfs|glusterfs|ceph|fuse\.(sshfs|glusterfs|s3fs)")
_BUSY_S = 30


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the file; a writer creates it, readable by its owner only."""
    if read_only:
        return sqlite3.connect(_read_only_uri(path), uri=True, timeout=_BUSY_S, isolation_level=None)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    if is_network(path.parent):
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA synchronous=FULL")
    else:
        connection.execute("PRAGMA journal_mode=WAL")
        # A power cut may lose the last rows, never the file: their items are computed again, byte for byte.
        connection.execute("PRAGMA synchronous=NORMAL")
    # What discovery met in this run, and what `claim` must not hand out now.
    connection.execute("CREATE TEMP TABLE seen(id TEXT PRIMARY KEY)")
    connection.execute("CREATE TEMP TABLE held(id TEXT PRIMARY KEY)")
    return connection


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to the newest version, one transaction a version."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE;{script}PRAGMA user_version={number};COMMIT;")


def require_known_version(path: Path, *, read_only: bool) -> None:
    """Refuse what a newer medseq wrote, before a byte is changed.

    Raises:
        OutputError: A newer version, no tables yet (`read_only`), or no database.
    """
    try:
        with closing(sqlite3.connect(_read_only_uri(path), uri=True, timeout=_BUSY_S)) as connection:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        raise damaged(path.name, error) from None
    if found == 0 and read_only:
        raise no_run(path)  # killed before its tables were there
    if found > VERSION:
        raise OutputError(
            "the run was recorded by a newer medseq",
            where=path.name,
            found=f"ledger version {found}",
            wanted=f"{VERSION} at most",
            remedy="update medseq; nothing was changed",
        )


def no_run(path: Path) -> OutputError:
    """The error for a folder without a ledger."""
    return OutputError("no run was recorded here", where=path.name, remedy="give the output folder of a run")


def damaged(name: str, error: sqlite3.Error) -> OutputError:
    """An error of SQLite in words."""
    text = str(error)
    if "full" in text:
        return OutputError("the ledger cannot be written: no space left", where=name, remedy="free space and run again")
    if "locked" in text or "busy" in text:
        return OutputError("the ledger is held by a run that is working", where=name, remedy="ask again when it ended")
    if any(word in text for word in ("readonly", "unable to open")):
        return OutputError(
            "the ledger cannot be opened for writing", where=name, remedy="check the folder's permissions"
        )
    return OutputError(
        "the ledger cannot be read", where=name, found=text, remedy="move it away to start anew (outputs stay)"
    )


def is_network(folder: Path, mounts: str | None = None) -> bool:
    """Whether a folder lies on a network file system, as the kernel lists its mounts.

    Args:
        folder: An existing folder.
        mounts: The text of ``/proc/self/mounts``; default: read it, and believe in a local disk where there is none.
    """
    if mounts is None:
        source = Path("/proc/self/mounts")
        if not source.exists():
            return False
        mounts = source.read_text("utf-8", "surrogateescape")
    resolved, kind, longest = folder.resolve(), "", -1
    for line in mounts.splitlines():
        _, point, found = line.split(" ")[:3]
        # Blanks in a mount point are written as octal numbers.
        where = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point))
        # The last of several mounts on one point is the visible one.
        if (where == resolved or where in resolved.parents) and len(where.parts) >= longest:
            kind, longest = found, len(where.parts)
    return bool(_NETWORK.fullmatch(kind))


def _read_only_uri(path: Path) -> str:
    # A plain read-only connection would leave files of the write-ahead log behind, or fail on a read-only medium;
    # where there is no log (the run ended) the file is complete without it.
    logged = any(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-journal"))
    return f"{path.absolute().as_uri()}?{'mode=ro' if logged else 'immutable=1'}"
