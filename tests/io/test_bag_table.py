"""Case tables: what is read, where the bags are found, and what is refused, without a name in the message."""

import pytest

from medseq.errors import ManifestError
from medseq.io.bag_table import bag_paths, read_case_table, slide_name


def table(tmp_path, text, name="cases.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_classification_tables(tmp_path):
    found = read_case_table(
        table(tmp_path, "dir,case_id,slide_id,label,age\n/x,p1,s1.svs,LUSC,3\n/x,p1,s2.SVS,LUSC,\n\n,p2,s3,LUAD,\n")
    )
    assert found.classes == ["LUAD", "LUSC"]
    assert [(s.slide_id, s.case_id, s.label, s.row) for s in found.slides] == [
        ("s1", "p1", 1, 2),
        ("s2", "p1", 1, 3),
        ("s3", "p2", 0, 5),
    ]
    assert [s.folder for s in found.slides] == ["/x", "/x", None]
    assert {case: len(slides) for case, slides in found.cases().items()} == {"p1": 2, "p2": 1}


@pytest.mark.parametrize(
    ("labels", "classes", "wanted"),
    [
        (["10", "9", "10"], None, (["9", "10"], [1, 0, 1])),
        (["b", "a", "b"], ["b", "a", "c"], (["b", "a", "c"], [0, 1, 0])),
        # A spreadsheet turns the integers of a column with gaps into decimals.
        (["1.0", "0.0", "1.0"], ["0", "1"], (["0", "1"], [1, 0, 1])),
    ],
)
def test_classes_have_an_order(tmp_path, labels, classes, wanted):
    rows = "".join(f"p{i},s{i},{text}\n" for i, text in enumerate(labels))
    found = read_case_table(table(tmp_path, f"case_id,slide_id,label\n{rows}"), classes=classes)
    assert (found.classes, [slide.label for slide in found.slides]) == wanted


def test_survival_tables_say_1_for_censored(tmp_path):
    # The first column is pandas' index.
    text = ",case_id,slide_id,censorship,survival_months\n0,p1,a.svs,1,12.5\n1,p2,b.svs,0.0,3\n"
    found = read_case_table(table(tmp_path, text), "survival")
    assert [(s.event, s.months, s.label) for s in found.slides] == [(False, 12.5, None), (True, 3.0, None)]
    assert found.classes == []


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("TCGA-55-7914-01Z-00-DX1.2f5d.svs", "TCGA-55-7914-01Z-00-DX1.2f5d"),
        # str.rstrip would eat these letters too.
        ("case-sss.svs", "case-sss"),
        ("a.vsv.svs", "a.vsv"),
        ("scan.v2", "scan.v2"),
        ("b.TIFF", "b"),
        (" c ", "c"),
    ],
)
def test_only_the_suffix_of_a_slide_is_removed(given, wanted):
    assert slide_name(given, "here") == wanted


@pytest.mark.parametrize("name", ["../a", "a/b", "..", "a\\b", "/etc/passwd", "a\0", ".svs", "", "nan"])
def test_ids_cannot_lead_out_of_the_folder(tmp_path, name):
    with pytest.raises(ManifestError, match="row 2: an id (leads out of its folder|is missing)"):
        slide_name(name, "t: row 2")


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("case_id,slide_id\np,s\n", "classification", "found case_id, slide_id, wanted case_id, slide_id, label"),
        ("case_id,slide_id,label\np,s,1\n", "survival", "a column is missing.*censorship"),
        ("case_id,slide_id,label\n", "classification", "lists no slides"),
        ("", "classification", "first row names the columns"),
        ("case_id,slide_id,label,label\n", "classification", "each once"),
        ("case_id,slide_id,label\np,s,1,2\n", "classification", "row 2: a row is longer"),
        ("case_id,slide_id,label\np,s,1\nSMITH,t,\n", "classification", "row 3: the label is missing"),
        ("case_id,slide_id,label\np,s,1\nSMITH,t,NaN\n", "classification", "row 3: the label is missing"),
        ("case_id,slide_id,label\np,s,1\nSMITH,s.svs,1\n", "classification", "slide id-.* in rows 2 and 3"),
        ("case_id,slide_id,label\nSMITH,s,1\nSMITH,t,0\n", "classification", "patient id-.*rows 2, 3.*single slides"),
        ("case_id,slide_id,label\n,s,1\n", "classification", "row 2: an id is missing"),
        ("case_id,slide_id,label\np,../s,1\n", "classification", "row 2: an id leads out"),
        ("dir,case_id,slide_id,label\n/x/../y,p,s,1\n", "classification", "row 2: a path leaves its folder"),
        ("case_id,slide_id,censorship,survival_months\np,s,2,1\n", "survival", "row 2: censorship is 0 or 1.*found 2"),
        ("case_id,slide_id,censorship,survival_months\np,s,,1\n", "survival", "found nothing"),
        ("case_id,slide_id,censorship,survival_months\np,s,0,\n", "survival", "survival_months is no time"),
        ("case_id,slide_id,censorship,survival_months\np,s,0,-1\n", "survival", "survival_months is no time"),
        ("case_id,slide_id,censorship,survival_months\np,s,0,inf\n", "survival", "survival_months is no time"),
        ("case_id,slide_id,censorship,survival_months\nSMITH,s,0,1\nSMITH,t,1,1\n", "survival", "patient disagree"),
    ],
)
def test_bad_tables_are_refused_without_a_name(tmp_path, text, target, message):
    with pytest.raises(ManifestError, match=message) as raised:
        read_case_table(table(tmp_path, text), target)
    assert "SMITH" not in str(raised.value)


def test_other_refusals(tmp_path):
    path = table(tmp_path, "case_id,slide_id,label\np,s,3\n")
    with pytest.raises(ManifestError, match="row 2: the label is no class.*found 3, wanted 0, 1"):
        read_case_table(path, classes=["0", "1"])
    with pytest.raises(ManifestError, match="no such table"):
        read_case_table(tmp_path / "none.csv")
    path.write_bytes(b"case_id,\xff\n")
    with pytest.raises(ManifestError, match="not a CSV file"):
        read_case_table(path)
    differing = table(tmp_path, "case_id,slide_id,label\np,s,1\np,t,0\n")
    assert [slide.label for slide in read_case_table(differing, per_slide=True).slides] == [1, 0]


def test_bags_are_found_in_the_folders_of_clam_and_trident(tmp_path):
    cases = read_case_table(table(tmp_path, "case_id,slide_id,label\np,a.b.svs,1\nq,c,0\nr,d.svs,0\n"))
    for name in ("h5_files/a.b.h5", "pt_files/a.b.pt", "c.npz", "pt_files/d.svs.pt", "a.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = bag_paths(cases, tmp_path)
    # HDF5 first: it has the coordinates.
    assert {slide: path.relative_to(tmp_path).as_posix() for slide, path in found.items()} == {
        "a.b": "h5_files/a.b.h5",
        "c": "c.npz",
        "d": "pt_files/d.svs.pt",
    }
    (tmp_path / "c.npz").unlink()
    with pytest.raises(ManifestError, match=r"slides without a bag.*found 1 of 3: row 3 \(id-.*wanted <slide_id>"):
        bag_paths(cases, tmp_path)
    with pytest.raises(ManifestError, match="nothing says where the bags are"):
        bag_paths(cases)
    (tmp_path / "c.h5").touch()
    own = read_case_table(table(tmp_path, f"dir,case_id,slide_id,label\n{tmp_path},q,c,0\n"))
    assert bag_paths(own) == {"c": tmp_path / "c.h5"}
