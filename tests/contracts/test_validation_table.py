"""The table of published measurements: every row has a source, a unit that can be read, and exactly one group."""

import json
from collections import Counter

import pytest
import yaml

from clustersim.places import PACKAGE

FOLDER = PACKAGE / "validation"
ROWS = [json.loads(line) for line in (FOLDER / "data" / "published.jsonl").read_text(encoding="utf-8").splitlines()]
GROUPS = yaml.safe_load((FOLDER / "cases.yaml").read_text(encoding="utf-8"))
COUNTS = {
    "V1": 12, "V2": 42, "V3": 6, "V4": 64, "V5": 24, "V6": 48, "V7": 28, "V8": 22, "V9": 53, "V10": 7, "V11": 8, "V12": 1,
    "V13": 2, "V14": 1, "I1": 11, "I2": 8, "I3": 5, "I4": 4, "I5": 1,
}  # fmt: skip


def test_every_row_is_in_exactly_one_group_and_none_is_missing():
    assert Counter(row["group"] for row in ROWS) == COUNTS
    assert len({row["id"] for row in ROWS}) == len(ROWS) == 347
    assert GROUPS.keys() == COUNTS.keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_every_row_says_what_was_measured_where_and_who_says_so(row):
    assert row.keys() == {"id", "group", "system", "value", "unit", "case", "source"}
    assert row["system"]
    assert row["source"]
    assert row["case"]["what"]


@pytest.mark.parametrize("name", [name for name in GROUPS if name not in ("V10", "V11", "V12", "V13", "V14")])
def test_every_group_says_how_it_is_compared_and_why(name):
    group = GROUPS[name]
    assert group.keys() >= {"title", "bar", "because"}
    if not group.get("identity"):
        assert group["statistic"] in ("mean", "max", "rank0")
        assert group["bytes"] in ("wire", "payload")
        assert group.keys() >= {"own", "routing"}
