"""Scores of measurements: files read, units, verdicts, what is not modelled, and constants that are accounted for."""

import json

import numpy as np
import pytest

from clustersim.cli import main
from clustersim.kernels import EVIDENCE, FOLDER, fitted_constants, load_kernel, trying
from clustersim.types import InputError
from clustersim.validation import scoring
from clustersim.validation.draws import routing_of
from clustersim.validation.fitting import least_squares
from clustersim.validation.machines import machine
from clustersim.validation.rows import published, read_rows, row_from

CASE = {
    "what": "exchange", "gpu": "h100_sxm", "gpus": 8, "gpus_per_node": 8, "nic": None, "exchange": "deepep_low_latency",
    "phase": "dispatch", "tokens_per_gpu": 16, "hidden": 7168, "top_k": 8, "experts": 256, "payload": "fp8_block128",
    "routing": "uniform", "metric": "seconds",
}  # fmt: skip


def row(**changes):
    return {"id": "mine", "value": 20.0, "unit": "us", "case": {**CASE, **changes}}


def scored(**changes):
    (one,) = scoring.score([row_from(row(**changes), "here")])
    return one


def test_at_most_14_constants_are_fitted_and_each_says_by_what():
    fitted = fitted_constants()
    assert len(fitted) == 14
    for key, one in fitted.items():
        assert one.evidence == "calibrated on these rows", key
        assert one.rows, key
        assert one.source, key


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_constant_of_a_kernel_has_its_source_and_kind_of_evidence(path):
    kernel = load_kernel(path.stem)
    assert len(kernel.title) > 20
    for key, one in kernel.constants.items():
        assert len(one.source) > 10, key
        assert "TBD" not in one.source + one.rows, key
        assert one.evidence in EVIDENCE, key


def test_a_constant_that_is_taken_over_follows_what_is_tried_for_it():
    with trying({"ports.sm_rate": 1e9, "nccl.base_ll": 1e-6}):
        assert load_kernel("deepep_v1")["sm_rate"] == load_kernel("hybrid_ep")["sm_rate"] == 1e9
        assert load_kernel("nccl")["base_ll"] == 1e-6
    assert load_kernel("nccl")["base_ll"] == 6.6e-6


@pytest.mark.parametrize(("name", "write"), [
    ("a.json", lambda rows: json.dumps(rows)),
    ("a.jsonl", lambda rows: "\n".join(json.dumps(r) for r in rows)),
    ("a.yaml", lambda rows: json.dumps(rows)),
    ("a.csv", lambda rows: "id,value,unit,case\n" + "\n".join(
        f"{r['id']},{r['value']},{r['unit']},\"{json.dumps(r['case']).replace(chr(34), chr(34) * 2)}\"" for r in rows
    )),
])  # fmt: skip
def test_measurements_are_read_from_every_kind_of_file(tmp_path, name, write):
    (tmp_path / name).write_text(write([row(), {**row(), "id": "other", "unit": "ms", "value": 3}]))
    first, second = read_rows(tmp_path / name)
    assert (first.id, first.value, first.case["gpus"]) == ("mine", pytest.approx(20e-6), 8)
    assert second.value == pytest.approx(3e-3)


@pytest.mark.parametrize(("unit", "metric", "scale"), [
    ("tokens/s/GPU", "tokens/s/GPU", 1.0), ("tok/s", "tokens/s/GPU", 1.0), ("TFLOP/s/GPU", "model FLOP/s/GPU", 1e12),
    ("TFLOPS", "model FLOP/s/GPU", 1e12), ("Gb/s", "bytes/s", 1.25e8), ("ms/layer", "seconds per layer", 1e-3),
])  # fmt: skip
def test_a_unit_may_be_written_as_the_metric_is(tmp_path, unit, metric, scale):
    (tmp_path / "a.json").write_text(json.dumps([{**row(metric=metric), "unit": unit, "value": 2.0}]))
    assert read_rows(tmp_path / "a.json")[0].value == pytest.approx(2.0 * scale)


@pytest.mark.parametrize(("change", "said"), [
    ({"unit": "uss"}, "unit 'uss' is unknown; did you mean us?"), ({"value": "fast"}, "value 'fast' is no finite number"),
    ({"value": -1}, "no finite number above 0"), ({"case": {}}, "case must be a mapping"), ({"id": None}, "has no id"),
])  # fmt: skip
def test_a_row_that_cannot_be_read_is_one_clear_error(tmp_path, capsys, change, said):
    (tmp_path / "a.json").write_text(json.dumps([{**row(), **change}]))
    assert main(["validate", str(tmp_path / "a.json")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("change", "said"), [
    ({"exchange": "deepep_norm"}, "no such exchange; did you mean deepep_normal"), ({"gpu": "tpu"}, "no topology has it"),
    ({"payload": "fp3"}, "no data sheet of this format"), ({"gpus": 12}, "do not fill nodes of 8"),
    ({"colour": 1}, "case.colour: is not in the vocabulary"), ({"phase": None}, "case.phase: is missing"),
    ({"routing": "whatever"}, "case.routing=whatever"), ({"metric": "joules"}, "must begin with seconds or bytes/s"),
    ({"exchange": "deepep_normal", "sms": 200}, "has 132 SMs"),
    ({"exchange": "deepep_normal", "gpus": 168, "sms": 24, "experts": 336}, "nodes = 21, and it supports at most 20"),
    ({"what": "weather"}, "case.what=weather"),
    ({"metric": "bytes/s, own copies counted"}, "unit us: is none of the metric 'bytes/s"),
])  # fmt: skip
def test_what_is_not_modelled_is_listed_with_the_reason(change, said):
    one = scored(**change)
    assert not one.modelled
    assert said in one.reason


def test_a_unit_of_another_share_of_the_cluster_is_listed_with_the_reason():
    (one,) = scoring.score([row_from({**row(metric="tokens/s/GPU"), "unit": "tok/s/node"}, "here")])
    assert one.reason == "unit tok/s/node: is of another share than the metric 'tokens/s/GPU'"


def test_json_has_signed_relative_errors_and_every_row(tmp_path, capsys):
    rows = [row(), {**row(gpu="tpu"), "id": "strange"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert main(["validate", str(tmp_path / "a.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    first, second = told["rows"]
    assert first["error"] == pytest.approx(first["simulated"] / 20 - 1)
    assert (second["modelled"], second["simulated"], second["error"]) == (False, None, None)
    (group,) = told["groups"]
    assert group == {
        "group": "yours", "rows": 2, "median": abs(first["error"]), "worst": abs(first["error"]), "bar_median": None,
        "bar_worst": None, "ok": None,
    }  # fmt: skip


def test_beyond_the_calibrated_range_a_row_says_so():
    assert not scored().notes
    assert "tokens_per_gpu 1000 is outside 2 to 256" in scored(tokens_per_gpu=1000).notes[0]


def test_bandwidth_is_logical_bytes_over_the_same_seconds():
    (rate,) = scoring.score([row_from({**row(metric="bytes/s, all selections counted"), "unit": "GB/s"}, "here")])
    seconds = scored()
    assert rate.simulated == pytest.approx(16 * 8 * 7392 / seconds.simulated, rel=1e-9)


def test_a_verdict_needs_every_row_modelled_and_within_its_own_bar():
    rows = [one for one in published() if one.group == "V7" and one.case["gpus"] == 8]
    results = scoring.score(rows)
    (v,) = scoring.verdicts(results)
    errors = sorted(abs(one.error) for one in results)
    assert v.worst == errors[-1]
    assert v.median == pytest.approx(np.median(errors))
    assert {one.bar for one in results} == {0.15, 0.25}
    assert [one.bar for one in results if one.row.case["bytes_per_gpu"] < 1 << 20] == [0.25] * 4


@pytest.mark.parametrize(("words", "nodes"), [("uniform", 8), ("uniform scores, best 4 of 8 nodes by maximum", 4)])
def test_drawn_choices_are_distinct_and_on_no_more_nodes_than_the_words_allow(words, nodes):
    r = routing_of(np.random.default_rng(0), words, gpus=4, tokens=500, experts=64, top_k=8)
    assert all(len(set(ids)) == 8 for ids in r.assigned.tolist())
    most = max(len(set(ids)) for ids in (r.assigned // 8).tolist())
    assert most <= nodes
    share = np.bincount(r.assigned.ravel(), minlength=64) / r.assigned.size
    assert abs(share - 1 / 64).max() < 5 * np.sqrt(1 / 64 / r.assigned.size)


def test_balanced_choices_give_every_expert_the_same():
    for gpus in (8, 32):
        r = routing_of(np.random.default_rng(0), "balanced", gpus=gpus, tokens=64, experts=64, top_k=8)
        assert np.ptp(np.bincount(r.assigned.ravel(), minlength=64)) == 0
        assert all(len(set(ids)) == 8 for ids in r.assigned.tolist())


def test_a_machine_has_as_few_nodes_as_hold_its_gpus():
    rack, nodes = machine({"gpu": "gb200", "gpus": 8, "gpus_per_node": 72}), machine({"gpu": "h800_sxm", "gpus": 64})
    assert (rack.n_nodes, nodes.n_nodes) == (1, 8)
    slow = machine({"gpu": "h100_sxm", "gpus": 16, "gpus_per_node": 8, "nic": "200Gb/s per GPU"})
    assert {link.capacity for link in slow.links if link.kind == "nic_up"} == {25e9}


def test_a_fit_finds_the_constants_that_made_the_numbers_and_how_sure_it_is():
    """t = a + n / b with 1 % noise: both come back, and 95 % intervals hold the truth in 40 of 40 fits but a few."""
    n, a, b = np.geomspace(1e3, 1e9, 30), 1e-5, 3e11
    held = 0
    for seed in range(40):
        t = (a + n / b) * np.exp(np.random.default_rng(seed).normal(0, 0.01, n.size))
        fit = least_squares({"a": 3e-5, "b": 1e11, "c": 7.0}, lambda v, t=t: np.log((v["a"] + n / v["b"]) / t))
        assert fit.values["a"] == pytest.approx(a, rel=0.03)
        assert fit.values["b"] == pytest.approx(b, rel=0.03)
        assert (fit.values["c"], fit.intervals["c"]) == (7.0, (0.0, float("inf")))
        held += fit.intervals["a"][0] <= a <= fit.intervals["a"][1]
    assert held >= 34           # 38 expected; the chance of fewer than 34 of 40 at 95 % is below 0.5 %
    with pytest.raises(InputError, match="needs as many measurements"):
        least_squares({"a": 1.0, "b": 1.0}, lambda v: np.ones(1))
