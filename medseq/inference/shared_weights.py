"""One copy of a model's weights for all worker processes: a float32 file that each of them maps. No torch.

The kernel keeps the pages of a mapped file once, however many processes read them; nothing is copied unless somebody
writes. Bundles store float16 and compute in float32, so the file is written once a run, into a private folder.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from medseq.errors import BundleError, OutputError
from medseq.inference.bundle import Bundle

__all__ = ["shared_weights"]


@contextmanager
def shared_weights(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle with its weights in a file to map; the file is removed at the end.

    Raises:
        BundleError: The weights changed, or cannot be read.
        OutputError: No room for the file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load, save_file

    try:
        state = load(bundle.read_weights())
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(
            "the weights are no safetensors file", where=bundle.config.name, found=type(error).__name__
        ) from None
    floats = {key: value.astype(np.float32) if value.dtype == np.float16 else value for key, value in state.items()}
    with tempfile.TemporaryDirectory(prefix="medseq-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "weights.safetensors")
        try:
            save_file(floats, path)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                "the weights cannot be shared between workers",
                found=type(error).__name__,
                remedy="free space in the temporary folder (TMPDIR), or pass --workers 0",
            ) from None
        yield replace(bundle, mapped=path)
