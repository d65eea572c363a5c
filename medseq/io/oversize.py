"""What it means when reading a file takes more memory than there is: it is large, or it is damaged."""

from medseq.errors import MemoryLimitError

__all__ = ["no_memory"]


def no_memory(where: str) -> MemoryLimitError:
    """The error for a file whose sizes do not fit into memory.

    Args:
        where: Label of the file.
    """
    return MemoryLimitError(
        "the file states sizes that do not fit into memory",
        where=where,
        remedy="copy the file again if it should be small; else use a machine with more memory",
    )
