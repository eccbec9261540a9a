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


def test_steps_of_serving_are_apart_and_those_of_decoding_are_near():
    """The rows of docs/serving.md: none is in the table. Two that are quick to play, fitted by nothing, are within a fifth."""
    serving = read_rows(FOLDER / "data" / "serving.jsonl")
    assert [row.group for row in serving] == ["prefill"] * 7 + ["decoding"] * 7
    assert not {row.id for row in serving} & {row.id for row in published()}
    for one in scoring.score([row for row in serving if "drafts" in row.id]):
        assert one.modelled
        assert abs(one.error) < 0.2
