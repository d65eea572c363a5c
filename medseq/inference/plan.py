"""What a run has to do: everything found is in the ledger, everything not trusted is queued. No torch."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from medseq.errors import InputError
from medseq.inference.check import output_problem
from medseq.inference.choice import Choice
from medseq.inference.found import Found
from medseq.inference.ledger import Ledger
from medseq.inference.retry import LATER_CODES
from medseq.inference.worker import input_sha256

__all__ = ["register", "requeue", "require_something"]


_WANTED = {
    "volume": "DICOM images or NIfTI (.nii, .nii.gz)",
    **dict.fromkeys(
        ("bag", "slide"), "features (.h5, .pt, .npz, .npy, .zarr, .csv) or slides (SVS, NDPI, MRXS, SCN, DICOM, TIFF)"
    ),
    "kspace": "raw MR data (fastMRI or Calgary-Campinas HDF5, ISMRMRD, BART .cfl, .npy, .npz)",
}


def require_something(items: Iterator[Found], inputs: str = "volume") -> Iterator[Found]:
    """The same items, once one of them turned out to be more than a file to skip.

    Raises:
        InputError: Telling what was found instead.
    """
    seen: list[Found] = []
    for item in items:
        seen.append(item)
        if item.state != "skipped":
            return chain(seen, items)
    reasons = Counter(item.reason_code for item in seen)
    words = ", ".join(f"{count} {code}" for code, count in reasons.most_common())
    raise InputError(
        "nothing to process in the input",
        found=f"{len(seen)} files: {words}" if seen else "an empty folder",
        wanted=_WANTED[inputs],
        remedy="give the folder that holds them",
    )


def register(ledger: Ledger, found: Iterable[Found], choice: Choice | None = None) -> None:
    """Put what was found into the ledger, all or nothing; what `choice` prefers is computed first."""
    choice = choice or Choice()
    with ledger.batch():
        for item in found:
            ledger.add_item(
                item.item_id,
                item.kind,
                item.label,
                item.files,
                state=item.state,
                reason_code=item.reason_code,
                reason=item.reason,
                flags=[{"code": code, "message": text, "level": "info"} for code, text in item.remarks],
                priority=choice.priority([file.relpath for file in item.files]),
            )
        ledger.mark_gone()


# Runs that died while they computed one and the same item, after which it is computed in a process of its own.
_SUSPICIOUS_DEATHS = 3


def requeue(ledger: Ledger, out: Path, root: Path, *, verify: bool, retry_failed: bool) -> bool:
    """Queue what a resumed run has to do again: killed, retryable, asked for, or no longer as recorded.

    Returns:
        Whether an item may have killed earlier runs: several of them died with it in work.
    """
    suspects = any(item.attempts >= _SUSPICIOUS_DEATHS for item in ledger.items("running"))
    ledger.requeue(states=["running"])
    ledger.requeue(states=["failed"], codes=() if retry_failed else LATER_CODES)
    for item in ledger.items("done"):
        changed = any(output_problem(out, row, rehash=verify) for row in ledger.outputs(item.id))
        if verify and not changed and item.reason_code != "gone":
            changed = not _same_input(root, [row.relpath for row in ledger.files(item.id)], item.input_sha256)
        if changed:
            ledger.requeue(ids=[item.id])
    return suspects


def _same_input(root: Path, relpaths: list[str], digest: str | None) -> bool:
    try:
        return input_sha256(root, relpaths) == digest
    except OSError:
        return False
