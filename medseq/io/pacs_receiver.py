"""A C-STORE receiver: what arrives is written whole or not at all, under names without identifiers.

    FOLDER/<study>/<series>/<image>.dcm      each name a hash of the UID

The title of the caller is kept where DICOM has a place for it: SourceApplicationEntityTitle of the file meta header.

Reference:
    DICOM PS3.4 annex B (storage service class as SCP), annex J (results of storage commitment).
"""

import hashlib
import io
import os
import shutil
import socket
import ssl
import threading
import uuid
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from medseq.errors import FormatError, InputError, MedseqError
from medseq.io.atomic import discard, fsync, written
from medseq.io.dicom_header import understood
from medseq.io.pacs import Tls, check_ae_title, quiet_libraries
from medseq.io.pacs_dimse import server_context

__all__ = ["Receiver", "uid_name"]

_PDU = 1 << 17
_OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0xA700, 0xC000
_ARRIVING = ".arriving"
_HANDSHAKE_S = 60.0
_IMPLEMENTATION = "2.25.190178204226213540937284413301472713390"


def uid_name(uid: str) -> str:
    """20 hexadecimal digits that stand for a UID in file names."""
    return hashlib.sha256(uid.encode()).hexdigest()[:20]


class _PatientContext:
    """TLS whose handshake runs in the association's own thread: one silent caller must not hold up all others."""

    def __init__(self, context: ssl.SSLContext):
        self._context = context

    def wrap_socket(self, client: socket.socket, server_side: bool) -> ssl.SSLSocket:
        """Called by pynetdicom for each connection that it has accepted."""
        client.settimeout(_HANDSHAKE_S)
        return self._context.wrap_socket(client, server_side=server_side, do_handshake_on_connect=False)


class Receiver:
    """A storage SCP with C-ECHO, in threads of its own.

    Args:
        folder: Where images go.
        ae_title: Our AE title.
        host: Address to listen on; a name of this machine only by the caller's choice.
        port: Port; 0 takes a free one (see `port`).
        callers: AE titles that may call; empty lets everyone.
        max_associations: Associations at one time; more are refused, and callers come again.
        min_free_bytes: With less space on the disk, images are refused with 'out of resources'.
        tls: Certificates, for TLS.
        on_stored: Called with (study name, bytes) after each image.
        lock: Held while an image gets its final name; whoever moves study folders holds it, too.

    Attributes:
        folder: See above.
        ae_title: See above.
        on_stored: See above.
        refused: Images that were refused since the start.
    """

    def __init__(  # noqa: PLR0913  (what a network service is configured by, all by keyword)
        self,
        folder: Path,
        *,
        ae_title: str = "MEDSEQ",
        host: str = "127.0.0.1",
        port: int = 11112,
        callers: Collection[str] = (),
        max_associations: int = 10,
        min_free_bytes: int = 0,
        tls: Tls | None = None,
        on_stored: Callable[[str, int], None] | None = None,
        lock: AbstractContextManager | None = None,
    ):
        quiet_libraries()
        self.folder, self.ae_title, self.refused = Path(folder), check_ae_title(ae_title), 0
        self._address, self._tls = (host, port), tls
        self._min_free, self.on_stored = min_free_bytes, on_stored
        self._lock = lock or threading.Lock()
        self._answers: dict[str, dict[str, str | None]] = {}
        self._answered = threading.Condition()
        self._server: Any = None
        self._entity = AE(self.ae_title)
        self._entity.maximum_associations = max_associations
        self._entity.maximum_pdu_size = _PDU
        # A caller that dies in mid-association must not hold its place for ever.
        self._entity.network_timeout = 60
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = [check_ae_title(title) for title in callers]
        self._entity.add_supported_context(Verification)
        self._entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        for context in AllStoragePresentationContexts:
            self._entity.add_supported_context(str(context.abstract_syntax), AllTransferSyntaxes)

    def start(self) -> "Receiver":
        """Listen.

        Raises:
            InputError: The port is taken, or the TLS files cannot be used.
        """
        # Halves of images that a killed receiver left.
        discard(self.folder / _ARRIVING)
        context = _PatientContext(server_context(self._tls)) if self._tls is not None else None
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_EVENT_REPORT, self._report)]
        try:
            self._server = self._entity.start_server(
                self._address,
                block=False,
                ssl_context=context,  # type: ignore[arg-type]
                evt_handlers=handlers,  # type: ignore[arg-type]
            )
        except OSError as error:
            raise InputError(
                "cannot listen", where=f"port {self._address[1]}", found=error.strerror, remedy="choose another --port"
            ) from None
        return self

    def stop(self) -> None:
        """End associations and stop listening."""
        if self._server is not None:
            self._entity.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> "Receiver":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_address[1] if self._server is not None else self._address[1]

    @property
    def paused(self) -> bool:
        """Whether images are refused because the disk is nearly full."""
        at = self.folder
        while not at.exists():
            at = at.parent
        return shutil.disk_usage(at).free < self._min_free

    def wait_for_commitment(self, transaction: str, timeout_s: float) -> dict[str, str | None] | None:
        """What the archive reported: image UID -> None (it has it) or a reason; None if nothing came in time."""
        with self._answered:
            self._answered.wait_for(lambda: transaction in self._answers, timeout_s)
            return self._answers.pop(transaction, None)

    def _store(self, event: Any) -> int:
        if self.paused:
            self.refused += 1
            return _OUT_OF_RESOURCES
        try:
            study, data = self._file(event)
        except FormatError:
            self.refused += 1
            return _CANNOT_UNDERSTAND
        try:
            self._keep(self.folder.joinpath(*study).with_suffix(".dcm"), data)
        except MedseqError:
            self.refused += 1
            return _OUT_OF_RESOURCES
        if self.on_stored:
            self.on_stored(study[0], len(data))
        return 0x0000

    def _keep(self, target: Path, data: bytes) -> None:
        """Write beside the studies, then rename under the lock: a study is never moved away with half an image."""
        partial = self.folder / _ARRIVING / uuid.uuid4().hex
        with written("the receiver's folder"):
            partial.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(partial, target)
                fsync(target.parent)

    def _file(self, event: Any) -> tuple[tuple[str, str, str], bytes]:
        """Names of an arrived image and its bytes as a file; its data set is kept as it was sent."""
        raw = event.request.DataSet.getvalue()
        syntax = event.context.transfer_syntax
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = event.request.AffectedSOPClassUID
        meta.MediaStorageSOPInstanceUID = event.request.AffectedSOPInstanceUID
        meta.TransferSyntaxUID, meta.ImplementationClassUID = syntax, _IMPLEMENTATION
        meta.SourceApplicationEntityTitle = str(event.assoc.requestor.ae_title).strip()
        buffer = io.BytesIO()
        with understood("an image that was sent", "makes no sense"):
            write_file_meta_info(buffer, meta)
            data = bytes(128) + b"DICM" + buffer.getvalue() + raw
            uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            header = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=list(uids))
            names = tuple(str(header[keyword].value) for keyword in uids)
        if not all(names) or names[2] != str(meta.MediaStorageSOPInstanceUID):
            raise FormatError("UIDs are missing or contradict the request", where="an image that was sent")
        return tuple(uid_name(uid) for uid in names), data  # type: ignore[return-value]

    def _report(self, event: Any) -> tuple[int, None]:
        """Result of a storage commitment."""
        try:
            with understood("a report of the archive", "makes no sense"):
                information = event.event_information
                answers: dict[str, str | None] = {
                    str(item.ReferencedSOPInstanceUID): None for item in information.get("ReferencedSOPSequence") or []
                }
                for item in information.get("FailedSOPSequence") or []:
                    reason = int(item.get("FailureReason", 0))
                    answers[str(item.ReferencedSOPInstanceUID)] = f"failure reason {reason:04X}"
                transaction = str(information.TransactionUID)
        except FormatError:
            return 0x0110, None
        with self._answered:
            self._answers[transaction] = answers
            self._answered.notify_all()
        return 0x0000, None
