"""DICOMweb: QIDO-RS to find, WADO-RS to fetch, STOW-RS to store.

Reference:
    DICOM PS3.18 sections 10.4 (retrieve), 10.5 (store), 10.6 (search).
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread, dcmwrite
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

from medseq.errors import FormatError, InputError, MedseqError, RetryableError
from medseq.io.dicom_header import quiet, understood
from medseq.io.pacs import Instance, Remote, Stored, check_keywords, quiet_libraries, request_headers
from medseq.io.privacy import label, path_label

__all__ = ["WebArchive", "file_dataset"]

T = TypeVar("T")
_PAGE = 500
_BATCH_BYTES = 32 << 20
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
_FIELDS = ("StudyInstanceUID", "StudyDate", "ModalitiesInStudy", "NumberOfStudyRelatedInstances")


class WebArchive:
    """An `Archive` behind DICOMweb; one object may be used from several threads.

    Args:
        remote: Its address.
    """

    def __init__(self, remote: Remote):
        quiet_libraries()
        session = requests.Session()
        session.headers.update(request_headers(remote))
        if remote.tls is not None:
            session.verify = str(remote.tls.ca) if remote.tls.ca else True
            if remote.tls.certificate:
                pair = (str(remote.tls.certificate), str(remote.tls.key)) if remote.tls.key else None
                session.cert = pair or str(remote.tls.certificate)
        self._client = DICOMwebClient(remote.url, session=session, timeout=remote.timeout_s)
        # Retries are counted in one place: medseq.io.pacs_transfer.
        self._client.set_http_retry_params(retry=False)

    def echo(self) -> None:
        """Ask for one study."""
        self._call(lambda: self._client.search_for_studies(limit=1))

    def find(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        """Studies that match; keys are DICOM keywords.

        Raises:
            InputError: A keyword that does not exist.
            RetryableError: The archive does not answer.
        """
        check_keywords(query)
        rows = self._pages(
            lambda offset: self._client.search_for_studies(
                search_filters=dict(query), fields=list(_FIELDS), limit=_PAGE, offset=offset
            )
        )
        return [_flat(row) for row in rows]

    def instances(self, study: str, series: str | None = None) -> list[Instance]:
        """Images of a study or series."""
        found = []
        for row in self._pages(
            lambda offset: self._client.search_for_instances(study, series, limit=_PAGE, offset=offset)
        ):
            flat = _flat(row)
            # Archives may leave out what the address already says.
            found.append(Instance(study, flat.get("SeriesInstanceUID") or series or "", flat["SOPInstanceUID"]))
        return found

    def fetch(self, instance: Instance) -> bytes:
        """One image as a DICOM file, in the transfer syntax in which the archive keeps it.

        Raises:
            FormatError: What came back is not DICOM, or another image.
            RetryableError: The archive does not answer.
        """
        where = label(instance.sop)
        dataset = self._call(
            lambda: self._client.retrieve_instance(
                instance.study, instance.series, instance.sop, media_types=(("application/dicom", "*"),)
            )
        )
        with understood(where, "the archive sent something that is no DICOM file"):
            if str(dataset.SOPInstanceUID) != instance.sop:
                raise FormatError("the archive sent another image than the one asked for", where=where)
            buffer = io.BytesIO()
            dcmwrite(buffer, dataset, enforce_file_format=True)
        return buffer.getvalue()

    def store(self, paths: Sequence[Path]) -> list[Stored]:
        """Send files by STOW-RS, some 32 MB a request; one answer a file."""
        answers: list[Stored] = []
        batch: list[tuple[Path, Dataset]] = []
        size = 0
        for path in paths:
            batch.append((path, file_dataset(path)))
            size += path.stat().st_size
            if size >= _BATCH_BYTES:
                answers += self._store(batch)
                batch, size = [], 0
        return answers + (self._store(batch) if batch else [])

    def _store(self, batch: list[tuple[Path, Dataset]]) -> list[Stored]:
        answer = self._call(lambda: self._client.store_instances([dataset for _, dataset in batch]))
        with understood("the archive's answer", "makes no sense"):
            failed = {
                str(item.ReferencedSOPInstanceUID): f"failure reason {int(item.get('FailureReason', 0)):04X}"
                for item in answer.get("FailedSOPSequence") or []
            }
            stored = {str(item.ReferencedSOPInstanceUID) for item in answer.get("ReferencedSOPSequence") or []}
        out = []
        for path, dataset in batch:
            uid = str(dataset.SOPInstanceUID)
            # An empty answer means that all were stored.
            missing = "not named in the answer" if (stored or failed) and uid not in stored else None
            out.append(Stored(path, str(dataset.SOPClassUID), uid, failed.get(uid, missing)))
        return out

    def _pages(self, search: Callable[[int], list[dict]]) -> list[dict]:
        rows: list[dict] = []
        while True:
            page = self._call(partial(search, len(rows)))
            rows += page
            if len(page) < _PAGE:
                return rows

    def _call(self, request: Callable[[], T]) -> T:
        """Run a request; turn what it raises into errors that hold no address and no UID."""
        where = "the archive"
        try:
            with quiet():
                return request()
        except MedseqError:
            raise
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            raise _http_error(status, where) from None
        except (InvalidDicomError, ValueError, KeyError, StopIteration, IndexError) as error:
            raise FormatError("the archive's answer makes no sense", where=where, found=type(error).__name__) from None
        except (requests.RequestException, OSError) as error:
            raise RetryableError(
                "does not answer", where=where, found=type(error).__name__, remedy="check address and network"
            ) from None


def file_dataset(path: Path) -> Dataset:
    """A file as a data set that is sent with preamble and DICM marker.

    Without them archives take the object, list it, and send back something that no reader accepts.

    Raises:
        FormatError: Not a DICOM file.
    """
    with understood(path_label(path), "not a DICOM file that can be sent"):
        dataset = dcmread(path, force=True)
        buffer = io.BytesIO()
        dcmwrite(buffer, dataset, enforce_file_format=True)
        return dcmread(io.BytesIO(buffer.getvalue()))


def _http_error(status: int, where: str) -> MedseqError:
    if status in _MAY_PASS:
        return RetryableError("cannot answer now", where=where, found=f"HTTP {status}", remedy="try again later")
    remedy = "check MEDSEQ_PACS_HEADERS" if status in (401, 403) else "check the address and what is asked for"
    return InputError("refuses the request", where=where, found=f"HTTP {status}", remedy=remedy)


def _flat(row: Mapping[str, Any]) -> dict[str, str]:
    """``{"0020000D": {"vr": "UI", "Value": ["1.2"]}}`` as ``{"StudyInstanceUID": "1.2"}``."""
    out = {}
    for name, element in row.items():
        tag = Tag(name)
        values = element.get("Value") or []
        texts = [value.get("Alphabetic", "") if isinstance(value, dict) else str(value) for value in values]
        if dictionary_has_tag(tag):
            out[keyword_for_tag(tag)] = "\\".join(texts)
    return out
