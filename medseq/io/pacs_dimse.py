"""DIMSE services as a client: C-ECHO, C-FIND, C-MOVE, C-STORE and storage commitment.

Reference:
    DICOM PS3.7 section 9 (services), PS3.4 annexes B (storage), C (query/retrieve), J (storage commitment).
"""

import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from medseq.errors import InputError, RetryableError
from medseq.io.dicom_header import quiet, understood
from medseq.io.pacs import Instance, Remote, Stored, Tls, check_keywords, quiet_libraries
from medseq.io.privacy import path_label

__all__ = ["DimseArchive", "client_context", "server_context"]

_PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_MAX_CONTEXTS = 120
_COMMITMENT_INSTANCE = UID("1.2.840.10008.1.20.1.1")
_PDU = 1 << 17
_PENDING = (0xFF00, 0xFF01)
# Out of resources, and what archives answer while they start or stop.
_MAY_PASS = range(0xA700, 0xA800)


class DimseArchive:
    """An `Archive` behind DIMSE; one association a call.

    Args:
        remote: Its address.
        local_ae: Our AE title.
    """

    def __init__(self, remote: Remote, local_ae: str):
        quiet_libraries()
        self._remote, self._local_ae = remote, local_ae

    def echo(self) -> None:
        """C-ECHO.

        Raises:
            RetryableError: Nobody answers.
            InputError: The archive does not know our AE title, or its own under this name.
        """
        with self._association([build_context(Verification)]) as association:
            self._check(association.send_c_echo(), "C-ECHO")

    def find(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        """Studies that match, by C-FIND at study level."""
        wanted = dict.fromkeys(("StudyInstanceUID", "StudyDate", "ModalitiesInStudy"), "")
        return self._find("STUDY", {**wanted, **query})

    def instances(self, study: str, series: str | None = None) -> list[Instance]:
        """Images of a study or series, by C-FIND at series and image level."""
        names = (
            [series]
            if series
            else [
                row["SeriesInstanceUID"]
                for row in self._find("SERIES", {"StudyInstanceUID": study, "SeriesInstanceUID": ""})
            ]
        )
        found = []
        for name in names:
            query = {"StudyInstanceUID": study, "SeriesInstanceUID": name, "SOPInstanceUID": ""}
            found += [Instance(study, name, row["SOPInstanceUID"]) for row in self._find("IMAGE", query)]
        return found

    def move(self, study: str, series: str, sops: Sequence[str], destination: str) -> int:
        """Ask the archive to send images to `destination`, an AE title that it knows; returns how many it could not.

        Args:
            study: Study UID.
            series: Series UID.
            sops: Image UIDs; empty for the whole series.
            destination: AE title of a receiver that is running.

        Raises:
            InputError: The archive does not know the destination.
            RetryableError: It did not finish.
        """
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE" if sops else "SERIES"
        query.StudyInstanceUID, query.SeriesInstanceUID = study, series
        if sops:
            query.SOPInstanceUID = list(sops)
        failed = 0
        with self._association([build_context(StudyRootQueryRetrieveInformationModelMove)]) as association:
            for status, _ in association.send_c_move(query, destination, StudyRootQueryRetrieveInformationModelMove):
                if status.get("Status") == 0xA801:
                    raise InputError("the archive does not know the receiver", where="C-MOVE", found="status A801")
                failed = int(status.get("NumberOfFailedSuboperations") or 0)
                # B000: some images failed; they are counted, not raised.
                if status.get("Status") not in (*_PENDING, 0xB000):
                    self._check(status, "C-MOVE")
        return failed

    def store(self, paths: Sequence[Path]) -> list[Stored]:
        """C-STORE in one association for each 120 combinations of class and transfer syntax."""
        kinds: dict[Path, tuple[str, str, str]] = {}
        for path in paths:
            with understood(path_label(path), "not a DICOM file that can be sent"):
                dataset = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
                kinds[path] = (
                    str(dataset.SOPClassUID),
                    str(dataset.file_meta.TransferSyntaxUID),
                    str(dataset.SOPInstanceUID),
                )
        answers = []
        for group in _groups(kinds):
            pairs = sorted({(kinds[path][0], kinds[path][1]) for path in group})
            contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in pairs]
            contexts += [build_context(sop_class, _PLAIN) for sop_class in sorted({pair[0] for pair in pairs})]
            with self._association(contexts) as association:
                answers += [self._store(association, path, *kinds[path]) for path in group]
        return answers

    def request_commitment(self, stored: Sequence[Stored]) -> str:
        """Ask the archive to answer for these images; it reports, with the returned UID, to our receiver.

        Raises:
            RetryableError: The archive does not take the request now.
            InputError: It does not offer storage commitment.
        """
        request = Dataset()
        request.TransactionUID = generate_uid(prefix=None)
        request.ReferencedSOPSequence = []
        for one in stored:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.sop_class, one.sop_uid
            request.ReferencedSOPSequence.append(item)
        with self._association([build_context(StorageCommitmentPushModel)]) as association:
            status, _ = association.send_n_action(request, 1, StorageCommitmentPushModel, _COMMITMENT_INSTANCE)
            self._check(status, "storage commitment")
        return str(request.TransactionUID)

    def _store(self, association: Any, path: Path, sop_class: str, syntax: str, uid: str) -> Stored:
        accepted = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in association.accepted_contexts
        }
        problem = None
        with understood(path_label(path), "the file cannot be sent"):
            dataset = dcmread(path)
            if (sop_class, syntax) not in accepted:
                if not any((sop_class, str(plain)) in accepted for plain in _PLAIN):
                    return Stored(path, sop_class, uid, "the archive does not take objects of this class")
                if UID(syntax).is_encapsulated:
                    # The archive cannot keep the compression: it gets the same pixels without.
                    dataset.decompress(generate_instance_uid=False)
                syntax = next(str(plain) for plain in _PLAIN if (sop_class, str(plain)) in accepted)
                dataset.file_meta.TransferSyntaxUID = UID(syntax)
            status = association.send_c_store(dataset)
        code = status.get("Status")
        if code is None or code in _MAY_PASS:
            raise RetryableError("could not store", where="the archive", found=_status(status))
        # B000 to BFFF are warnings: stored, with a change.
        if code != 0 and not 0xB000 <= code < 0xC000:
            problem = f"status {code:04X}"
        return Stored(path, sop_class, uid, problem)

    def _find(self, level: str, query: Mapping[str, str]) -> list[dict[str, str]]:
        request = Dataset()
        request.QueryRetrieveLevel = level
        check_keywords(query)
        for keyword, value in query.items():
            try:
                setattr(request, keyword, value)
            except (ValueError, TypeError):
                raise InputError("not a value of this attribute", where=keyword) from None
        rows = []
        with self._association([build_context(StudyRootQueryRetrieveInformationModelFind)]) as association:
            for status, found in association.send_c_find(request, StudyRootQueryRetrieveInformationModelFind):
                if status.get("Status") in _PENDING and found is not None:
                    rows.append({element.keyword: _text(element.value) for element in found if element.keyword})
                else:
                    self._check(status, "C-FIND")
        return rows

    @contextmanager
    def _association(self, contexts: list) -> Iterator[Any]:
        remote = self._remote
        entity = AE(self._local_ae)
        entity.acse_timeout = entity.network_timeout = entity.dimse_timeout = remote.timeout_s
        entity.connection_timeout = min(remote.timeout_s, 15.0)
        arguments = (client_context(remote.tls), remote.host) if remote.tls is not None else None
        with quiet():
            association = entity.associate(
                remote.host, remote.port, contexts=contexts, ae_title=remote.ae, max_pdu=_PDU, tls_args=arguments
            )
        if not association.is_established:
            raise _refusal(association)
        try:
            with quiet():
                yield association
        finally:
            if association.is_established:
                association.release()

    def _check(self, status: Dataset, service: str) -> None:
        code = status.get("Status")
        if code is None or code in _MAY_PASS:
            raise RetryableError("did not finish", where=service, found=_status(status), remedy="try again")
        if code != 0:
            raise InputError("the archive refuses", where=service, found=_status(status))


def client_context(tls: Tls | None) -> ssl.SSLContext:
    """TLS as a client: the archive must show a certificate that is trusted and bears its name."""
    tls = tls or Tls()
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
        if tls.certificate:
            context.load_cert_chain(str(tls.certificate), str(tls.key) if tls.key else None)
    except (OSError, ssl.SSLError) as error:
        raise InputError("the TLS files cannot be used", found=type(error).__name__) from None
    return context


def server_context(tls: Tls) -> ssl.SSLContext:
    """TLS as a server; with `Tls.ca`, callers must show a certificate that it signed.

    Raises:
        InputError: No certificate, or files that cannot be used.
    """
    if tls.certificate is None:
        raise InputError("a TLS server needs a certificate", remedy="pass --tls-cert and --tls-key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(str(tls.certificate), str(tls.key) if tls.key else None)
        if tls.ca:
            context.load_verify_locations(str(tls.ca))
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InputError("the TLS files cannot be used", found=type(error).__name__) from None
    return context


def _groups(kinds: Mapping[Path, tuple[str, str, str]]) -> Iterator[list[Path]]:
    """Files in runs whose classes and transfer syntaxes fit one association."""
    group: list[Path] = []
    pairs: set[tuple[str, str]] = set()
    for path, (sop_class, syntax, _) in kinds.items():
        if len(pairs | {(sop_class, syntax)}) * 2 > _MAX_CONTEXTS:
            yield group
            group, pairs = [], set()
        pairs.add((sop_class, syntax))
        group.append(path)
    if group:
        yield group


def _refusal(association: Any) -> RetryableError | InputError:
    if association.is_rejected:
        result = association.acceptor.primitive
        # Result 1 is permanent, 2 transient (PS3.8 9.3.4); source 1, reason 3 and 7: titles not recognised.
        permanent = getattr(result, "result", 2) == 1
        diagnostic = getattr(result, "diagnostic", None)
        words = {3: "our AE title is not known there", 7: "its AE title is another"}
        if permanent:
            found = words.get(diagnostic or 0, f"rejected, reason {diagnostic}")
            return InputError("refuses the association", where="the archive", found=found)
        return RetryableError("has no association free", where="the archive", remedy="try again later")
    if association.rejected_contexts:
        # pynetdicom ends an association in which nothing was accepted.
        return InputError("the archive offers none of the services asked for", where="the archive")
    return RetryableError("does not answer", where="the archive", remedy="check host, port, TLS and network")


def _status(status: Dataset) -> str:
    return f"status {status.Status:04X}" if "Status" in status else "no answer"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, str) or not hasattr(value, "__iter__") else "\\".join(map(str, value))
