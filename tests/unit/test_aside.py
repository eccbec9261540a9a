"""Rows put aside: none of them is in the table, and each is simulated or says why not."""

from clustersim.validation import scoring
from clustersim.validation.rows import FOLDER, published, read_rows


def test_rows_put_aside_are_not_in_the_table_and_all_read():
    aside = read_rows(FOLDER / "data" / "aside.jsonl")
    assert len(aside) == 81
    assert not {row.id for row in aside} & {row.id for row in published()}
    few = [row for row in aside if row.case.get("gpus", 1) <= 8 and row.case.get("tokens_per_gpu", 0) <= 128]
    for one in scoring.score(few):
        assert one.modelled or one.reason, one.row.id
