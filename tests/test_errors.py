"""The error tree: what a message is made of, and that an error survives a trip between processes."""

import copy
import inspect
import multiprocessing

import pytest

from medseq import errors
from medseq.errors import (
    BackendError,
    BundleError,
    InputError,
    MedseqError,
    OutputError,
    RetryableError,
    ShapeError,
)


def between_processes(error):
    here, there = multiprocessing.Pipe()
    here.send(error)
    return there.recv()


ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, MedseqError)]


def test_message_says_where_what_found_wanted_and_remedy():
    error = ShapeError("coils differ", where="slice 3", found=12, wanted=15, remedy="estimate the maps again")
    assert str(error) == "slice 3: coils differ (found 12, wanted 15); estimate the maps again"


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "it broke"),
        ({"where": "here"}, "here: it broke"),
        ({"found": 0}, "it broke (found 0)"),
        ({"wanted": "1"}, "it broke (wanted 1)"),
        ({"remedy": "mend it"}, "it broke; mend it"),
        ({"where": "", "found": (), "wanted": False}, ": it broke (found (), wanted False)"),
    ],
)
def test_parts_that_are_missing_leave_no_trace(parts, text):
    # Falsy values are values: 0 coils found must be said.
    assert str(MedseqError("it broke", **parts)) == text


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("copier", [copy.copy, between_processes])
def test_errors_cross_process_borders_whole(cls, copier):
    error = cls("what", where="where", found=[1, 2], wanted={"a": 3}, remedy="remedy")
    again = copier(error)
    assert type(again) is cls
    assert str(again) == str(error)
    assert (again.what, again.where, again.found, again.wanted, again.remedy) == (
        "what",
        "where",
        [1, 2],
        {"a": 3},
        "remedy",
    )


def test_input_errors_are_still_value_errors():
    for cls in (InputError, ShapeError, errors.FormatError, errors.ManifestError):
        with pytest.raises(ValueError, match="^too long$"):
            raise cls("too long")


def test_backend_errors_are_still_runtime_errors():
    with pytest.raises(RuntimeError, match="^no kernel$"):
        raise BackendError("no kernel")


def test_one_base_catches_all_and_permanent_errors_are_not_retryable():
    assert all(issubclass(cls, MedseqError) for cls in ALL)
    assert {cls.__name__ for cls in ALL if issubclass(cls, RetryableError)} == {"RetryableError", "MemoryLimitError"}
    assert not issubclass(OutputError, ValueError)
    assert not issubclass(BundleError, ValueError)


def test_codes_are_stable_and_distinct():
    # They are stored in ledgers: changing one breaks the reading of old runs.
    assert {cls.__name__: cls.code for cls in ALL} == {
        "MedseqError": "error",
        "InputError": "input",
        "ShapeError": "shape",
        "FormatError": "format",
        "ManifestError": "manifest",
        "OutputError": "output",
        "BundleError": "bundle",
        "BackendError": "backend",
        "RetryableError": "retry",
        "MemoryLimitError": "memory",
    }


def test_the_tree_in_the_docstring_is_complete():
    assert set(errors.__all__) == {cls.__name__ for cls in ALL}
    assert all(cls.__name__ in errors.__doc__ for cls in ALL)
