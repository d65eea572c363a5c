"""The key of the audit trail. It lies outside of what it protects: whoever can write the database must not have it."""

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from medseq.errors import InputError, OutputError
from medseq.io.atomic import written

__all__ = ["VARIABLE", "AuditKey", "audit_key", "derived"]

VARIABLE = "MEDSEQ_AUDIT_KEY"
_LEAST_BYTES = 16


@dataclass(frozen=True)
class AuditKey:
    """A key and where it came from.

    Attributes:
        secret: The bytes.
        notice: What the person who starts the review must know; empty if the key was given.
    """

    secret: bytes = field(repr=False)
    notice: str = ""


def audit_key(protected: Path | None = None, home: Path | None = None) -> AuditKey:
    """The key from the environment variable ``MEDSEQ_AUDIT_KEY``, else from a file that only its owner can read.

    Args:
        protected: The folder that the key protects; the key's file may not lie in it.
        home: Folder of the key's file; default ``$XDG_STATE_HOME/medseq`` or ``~/.local/state/medseq``.

    Raises:
        InputError: A key of fewer than 16 bytes.
        OutputError: The file cannot be written or is open to others.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        secret = given.encode()
        if len(secret) < _LEAST_BYTES:
            raise InputError(
                "the audit key is too short",
                where=VARIABLE,
                found=f"{len(secret)} bytes",
                wanted=f"at least {_LEAST_BYTES}",
                remedy="make one with: openssl rand -hex 32",
            )
        return AuditKey(secret)
    if home is None:
        state = os.environ.get("XDG_STATE_HOME")
        home = (Path(state) if state else Path.home() / ".local" / "state") / "medseq"
    path = (home / "audit.key").resolve()
    if protected is not None and protected.resolve() in path.parents:
        raise OutputError("the audit key would lie beside what it protects", remedy=f"set {VARIABLE}")
    notice = f"the audit key is kept in a file of this account; set {VARIABLE} to keep it where reviewers cannot read"
    return AuditKey(_file_key(path), notice)


def derived(secret: bytes, purpose: str) -> bytes:
    """Another key for another purpose, from which nobody finds the first.

    Reference:
        RFC 5869, HKDF-Expand with one block.
    """
    return hmac.new(secret, purpose.encode() + b"\x01", hashlib.sha256).digest()


def _file_key(path: Path) -> bytes:
    with written("the audit key"):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            # Written aside and linked: whoever finds the name finds the whole key.
            with tempfile.NamedTemporaryFile(dir=path.parent, mode="wb") as stream:
                stream.write(secrets.token_hex(32).encode())
                stream.flush()
                os.fsync(stream.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(stream.name, path)
        if path.stat().st_mode & 0o077:
            raise OutputError("the audit key is open to others", where=path.name, remedy="chmod 600 it")
        secret = path.read_bytes()
    if len(secret) < _LEAST_BYTES:
        raise OutputError(
            "the audit key is incomplete", where=path.name, found=f"{len(secret)} bytes", remedy=f"set {VARIABLE}"
        )
    return secret
