"""Bags in one table: grouped by their ids, and every bad cell is found with its row."""

import numpy as np
import pytest

from medseq.errors import FormatError, InputError
from medseq.io.features import Bag
from medseq.io.features_open import open_bag, open_bags
from medseq.io.features_table import read_bag_csv


def table(tmp_path, text):
    (tmp_path / "bags.csv").write_text(text, encoding="utf-8")
    return tmp_path / "bags.csv"


def test_rows_are_grouped_by_their_bags(tmp_path, rng):
    features = rng.normal(size=(30, 5)).astype("f4")
    owner = np.concatenate([[0, 1, 2], rng.integers(0, 3, 27)])
    rows = [f"{owner[i] % 2},bag {owner[i]}," + ",".join(map(repr, map(float, features[i]))) for i in range(30)]
    found = read_bag_csv(table(tmp_path, "\n".join(rows)))
    assert [bag.slide_id for bag in found.bags] == ["bag 0", "bag 1", "bag 2"]
    assert found.labels.tolist() == [0, 1, 0]
    for number, bag in enumerate(found.bags):
        assert isinstance(bag, Bag)
        # repr of a float32 as a float reads back exactly.
        assert np.array_equal(bag.features, features[owner == number])
        assert bag.coords is None


def test_names_empty_lines_and_a_mark_at_the_start_are_skipped(tmp_path):
    found = read_bag_csv(table(tmp_path, "\ufefflabel,bag,a,b\n1.0,7,1,2\n\n1, 7 ,3,4e1\n"))
    assert [bag.slide_id for bag in found.bags] == ["7"]
    assert found.labels.tolist() == [1]
    assert np.array_equal(found.bags[0].features, [[1, 2], [3, 40]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no instances"),
        ("label,bag,x\n", "holds no instances"),
        ("1,a,1,2\n1,a,1\n", "row 2: rows have different lengths.*found 1 features, wanted 2"),
        ("1,a,1,2\n1,a,1,x\n", "row 2, column 4"),
        ("1,a,1\n\n1,a\n", "row 3: a row is too short"),
        ("1,a,1\n0,b,1\n0,a,1\n", "row 3: a bag has two labels.*found 1 and 0"),
        ("1,a,1\n0.5,b,1\n", "row 2: the label is no whole number"),
        ("1,a,1\nyes,b,1\n", "row 2: the label is no whole number"),
        ("1,a,1\n0, ,1\n", "row 2: the bag has no id"),
        ("1,a,1\n0,b,nan\n0,b,1\n0,b,1e300\n", "2 of 4 instances read: rows 2, 4"),
    ],
)
def test_bad_tables_are_refused_with_the_row(tmp_path, text, message):
    with pytest.raises(FormatError, match=message):
        read_bag_csv(table(tmp_path, text))


def test_a_table_of_one_bag_is_a_bag(tmp_path):
    assert open_bag(table(tmp_path, "1,a,1\n1,a,2\n"), slide_id="s").slide_id == "s"
    with pytest.raises(InputError, match="many bags.*found 2"):
        open_bag(table(tmp_path, "1,a,1\n1,b,2\n"))
    assert [bag.slide_id for bag in open_bags(table(tmp_path, "1,a,1\n1,b,2\n"))] == ["a", "b"]
    (tmp_path / "bags.csv").write_bytes(b"1,a,\xff\n")
    with pytest.raises(FormatError, match="not a text file"):
        open_bags(tmp_path / "bags.csv")
