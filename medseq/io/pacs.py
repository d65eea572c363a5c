"""Archives (PACS): where one is, how to talk to it, and what a transfer did. Importing this loads no network library.

    archive = connect(parse_remote("https://pacs.example/dicom-web"))          # DICOMweb
    archive = connect(parse_remote("dicom://ORTHANC@127.0.0.1:4242"))          # DIMSE; dicom+tls:// with TLS
    archive.echo(); archive.find({"PatientID": "4711"}); archive.store(paths)

Request headers, credentials among them, come from the environment variable ``MEDSEQ_PACS_HEADERS``: one
``Name: value`` a line. They are never sent over plain HTTP to another machine, never logged, never on a command line.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from medseq.errors import BackendError, InputError

__all__ = [
    "Archive",
    "Instance",
    "Remote",
    "Stored",
    "Tls",
    "check_ae_title",
    "check_keywords",
    "connect",
    "parse_remote",
    "quiet_libraries",
    "request_headers",
]

_HEADERS = "MEDSEQ_PACS_HEADERS"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_AE_TITLE = re.compile(r"[ !-\[\]-~]{1,16}$")
_REASONABLE_S = 60.0


@dataclass(frozen=True)
class Tls:
    """Files of a TLS connection.

    Attributes:
        ca: Certificates that are trusted; None takes the system's.
        certificate: Our own certificate, or None.
        key: Its key; None if it stands in the same file.
    """

    ca: Path | None = field(default=None, repr=False)
    certificate: Path | None = field(default=None, repr=False)
    key: Path | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Remote:
    """An archive's address.

    Attributes:
        kind: ``web`` (DICOMweb) or ``dimse``.
        url: Base URL of DICOMweb; empty for DIMSE.
        host: Host of DIMSE.
        port: Its port.
        ae: Its AE title.
        tls: TLS files; None for a plain DIMSE connection, or DICOMweb with the system's certificates.
        timeout_s: Longest silence.
    """

    kind: str
    url: str = field(default="", repr=False)
    host: str = ""
    port: int = 0
    ae: str = "ANY-SCP"
    tls: Tls | None = None
    timeout_s: float = _REASONABLE_S


@dataclass(frozen=True)
class Instance:
    """One image in an archive, by its three UIDs."""

    study: str = field(repr=False)
    series: str = field(repr=False)
    sop: str = field(repr=False)


@dataclass(frozen=True)
class Stored:
    """What the archive said to one file.

    Attributes:
        path: The file.
        sop_class: Its class UID.
        sop_uid: Its instance UID.
        problem: Why it was not stored, or None.
    """

    path: Path = field(repr=False)
    sop_class: str
    sop_uid: str = field(repr=False)
    problem: str | None = None


class Archive(Protocol):
    """What both kinds of archive do; every call raises `RetryableError` for trouble that may pass."""

    def echo(self) -> None:
        """Return if the archive answers."""
        ...

    def find(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        """Studies that match, as keyword -> value."""
        ...

    def instances(self, study: str, series: str | None = None) -> list[Instance]:
        """Images of a study or of one of its series."""
        ...

    def store(self, paths: Sequence[Path]) -> list[Stored]:
        """Send files; one answer a file."""
        ...


def parse_remote(text: str, *, tls: Tls | None = None, timeout_s: float = _REASONABLE_S) -> Remote:
    """``http(s)://host/dicom-web``, ``dicom://AE@host:port`` or ``dicom+tls://AE@host:port``.

    Raises:
        InputError: None of these; the text is not repeated, since it may hold a password.
    """
    wanted = "http(s)://host/path, dicom://AE@host:port or dicom+tls://AE@host:port"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise InputError("not an archive's address", wanted=wanted) from None
    if not host or parts.scheme not in ("http", "https", "dicom", "dicom+tls"):
        raise InputError("not an archive's address", found=parts.scheme or "no scheme", wanted=wanted)
    if parts.scheme.startswith("http"):
        if parts.username or parts.password:
            raise InputError("no credentials in an address", remedy=f"put them into {_HEADERS}")
        return Remote("web", text.rstrip("/"), host, port or 0, tls=tls, timeout_s=timeout_s)
    if not port:
        raise InputError("no port", wanted=wanted)
    ae = check_ae_title(parts.username or "ANY-SCP")
    secured = (tls or Tls()) if parts.scheme == "dicom+tls" else None
    return Remote("dimse", "", host, port, ae, secured, timeout_s)


def check_ae_title(title: str) -> str:
    """The title itself.

    Raises:
        InputError: Not 1 to 16 printable ASCII characters without a backslash.
    """
    if not _AE_TITLE.match(title) or not title.strip():
        raise InputError("not an AE title", found=f"{len(title)} characters", wanted="1 to 16 of printable ASCII")
    return title


def check_keywords(query: Mapping[str, str]) -> None:
    """Return if all keys are DICOM keywords.

    Raises:
        InputError: Some are not.
    """
    from pydicom.datadict import tag_for_keyword

    unknown = sorted(key for key in query if tag_for_keyword(key) is None)
    if unknown:
        raise InputError("no such DICOM attribute", found=", ".join(unknown), wanted="keywords, e.g. PatientID")


def request_headers(remote: Remote) -> dict[str, str]:
    """The headers that the environment gives for HTTP requests.

    Raises:
        InputError: A line without a colon, or headers that would travel in the clear.
    """
    lines = [line for line in os.environ.get(_HEADERS, "").splitlines() if line.strip()]
    if any(":" not in line for line in lines):
        raise InputError("not a request header", where=_HEADERS, wanted="one 'Name: value' a line")
    if lines and remote.url.startswith("http:") and remote.host not in _LOOPBACK:
        raise InputError("headers would be sent in the clear", where=_HEADERS, found="http", wanted="https")
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def connect(remote: Remote, *, local_ae: str = "MEDSEQ") -> Archive:
    """A client of the archive; nothing is sent yet.

    Args:
        remote: Its address.
        local_ae: Our own AE title, for DIMSE.

    Raises:
        BackendError: The network libraries are not installed.
    """
    try:
        if remote.kind == "web":
            from medseq.io.pacs_web import WebArchive

            return WebArchive(remote)
        from medseq.io.pacs_dimse import DimseArchive

        return DimseArchive(remote, check_ae_title(local_ae))
    except ImportError:
        raise BackendError(
            "talking to an archive needs pynetdicom and dicomweb-client",
            found="not installed",
            remedy="pip install 'medseq[dicom]'",
        ) from None


def quiet_libraries(names: Iterable[str] = ("pynetdicom", "dicomweb_client", "urllib3", "pydicom")) -> None:
    """Keep the network libraries from logging: their lines quote UIDs, addresses and headers."""
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
