"""Splits: in CLAM's layouts and by manifest, and never a patient in two parts."""

import pytest

from medseq.errors import ManifestError
from medseq.io.bag_table import read_case_table
from medseq.io.manifest import ManifestFile, read_manifest
from medseq.io.splits import read_split_csv, split_by_manifest, write_split_csv

# Patient p1 has two slides.
CASES = "case_id,slide_id,label\np1,a.svs,1\np1,b.svs,1\np2,c.svs,0\np3,d.svs,0\n4,7,1\n"


@pytest.fixture
def cases(tmp_path):
    (tmp_path / "cases.csv").write_text(CASES)
    return read_case_table(tmp_path / "cases.csv")


def split(tmp_path, text):
    (tmp_path / "splits_0.csv").write_text(text)
    return tmp_path / "splits_0.csv"


def test_slide_ids_in_columns_of_different_lengths(tmp_path, cases):
    # pandas writes a column of numbers with gaps as decimals.
    found = read_split_csv(split(tmp_path, ",train,val,test\n0,a,c.svs,7.0\n1,b,,\n"), cases)
    assert found == (("a", "b"), ("c",), ("7",))
    assert [slide.slide_id for slide in found.slides(cases, "train")] == ["a", "b"]
    # d is in no part: CLAM leaves such slides out.
    assert found.part("test") == ("7",)


def test_case_ids_stand_for_all_their_slides(tmp_path, cases):
    assert read_split_csv(split(tmp_path, ",train,val\n0,p1,p2\n1,4,p3\n"), cases) == (("a", "b", "7"), ("c", "d"), ())


def test_true_and_false(tmp_path, cases):
    text = ",train,val,test\na,True,False,False\nb,True,False,False\nc,False,True,False\nd,False,False,True\n"
    assert read_split_csv(split(tmp_path, text), cases) == (("a", "b"), ("c",), ("d",))


def test_a_split_that_is_written_is_read_again(tmp_path, cases):
    wanted = read_split_csv(split(tmp_path, ",train,val,test\n0,a,c,d\n1,b,,\n2,7,,\n"), cases)
    path = write_split_csv(tmp_path / "out" / "splits_1.csv", wanted)
    assert path.read_text() == ",train,val,test\n0,a,c,d\n1,b,,\n2,7,,\n"
    assert read_split_csv(path, cases) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",train,val,test\n0,a,b,c\n", "a patient is in two parts.*patient id-.* in train and val.*split by patient"),
        (",train,val,test\n0,a,a,c\n", "listed twice.*under train and val"),
        (",train,val,test\n0,a,c,d\n1,a,,\n", "row 3: an id is listed twice"),
        (",train,val,test\n0,a,SMITH,d\n", "row 2: an id is not in the table.*id-.* under val"),
        (",train,val,test\n0,p1,c,d\n", "slide ids and case ids are mixed"),
        (",train,val,test\n0,,c,d\n", "training part is empty"),
        (",train\n0,a\n", "no split in this file.*found train"),
        ("case,fold\na,1\n", "no split in this file.*found case, fold"),
        (",train,val,test\n0,../a,c,d\n", "row 2: an id leads out"),
    ],
)
def test_bad_splits_are_refused_without_a_name(tmp_path, cases, text, message):
    with pytest.raises(ManifestError, match=message) as raised:
        read_split_csv(split(tmp_path, text), cases)
    assert "SMITH" not in str(raised.value)


def test_by_manifest(tmp_path, cases):
    for name in "abcd":
        (tmp_path / f"{name}.h5").touch()
    entries = [("a", "p1", "train"), ("b", "p1", "train"), ("c", "p2", "val"), ("d", "p3", "test")]
    lines = [f"  - {{path: {name}.h5, subject: {subject}, role: {role}}}" for name, subject, role in entries]
    (tmp_path / "m.yaml").write_text("\n".join(["files:", *lines]))
    found, paths = split_by_manifest(read_manifest(tmp_path / "m.yaml"), cases)
    assert found == (("a", "b"), ("c",), ("d",))
    assert paths == {name: tmp_path / f"{name}.h5" for name in "abcd"}
    # Subjects of the manifest that are one patient of the table.
    apart = [ManifestFile(paths["a"], "x", "train"), ManifestFile(paths["b"], "y", "test")]
    with pytest.raises(ManifestError, match="a patient is in two parts"):
        split_by_manifest(apart, cases)
    with pytest.raises(ManifestError, match="two files of a slide"):
        split_by_manifest([apart[0], apart[0]], cases)
    with pytest.raises(ManifestError, match="entry 1: an id is not in the table"):
        split_by_manifest([apart[0], ManifestFile(tmp_path / "z.h5", "z", "val")], cases)
