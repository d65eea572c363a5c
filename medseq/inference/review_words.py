"""Reasons that a reviewer may give, by task: stable codes for machines, words for people. No torch."""

from medseq.inference.review_numbers import Task

__all__ = ["REASONS", "reason_words"]

REASONS: dict[Task, dict[str, str]] = {
    "restore": {
        "noise-left": "noise left",
        "over-smoothed": "too smooth, detail lost",
        "texture": "texture looks artificial",
        "invented": "a structure that was not there before",
        "removed": "a structure is gone",
        "wrong-values": "values are shifted",
        "artefact": "artefact",
        "geometry": "orientation or geometry is wrong",
        "input-unfit": "the input was not fit for use",
        "other": "other, see the comment",
    },
    "recon": {
        "aliasing": "aliasing left",
        "over-smoothed": "too smooth, detail lost",
        "noise-left": "noise left",
        "invented": "a structure that the data do not show",
        "removed": "a structure is gone",
        "motion": "motion",
        "intensity": "uneven intensity",
        "artefact": "artefact",
        "geometry": "orientation or geometry is wrong",
        "other": "other, see the comment",
    },
    "mil": {
        "wrong-class": "the class is wrong",
        "wrong-region": "attention on the wrong place",
        "out-of-focus": "out of focus",
        "pen-or-fold": "pen, fold or bubble",
        "stain": "stain is unusual",
        "no-tissue": "tissue was missed",
        "not-sure": "cannot be told from this slide",
        "other": "other, see the comment",
    },
}


def reason_words(code: str | None) -> str:
    """A code in words; an unknown one, of an older version, as it is."""
    if not code:
        return ""
    return next((words[code] for words in REASONS.values() if code in words), code)
