"""Sampler parameters from a trace: what is found again, what is scored, what a trace cannot tell, what is refused."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from clustersim.cli import main
from clustersim.places import PACKAGE
from clustersim.types import InputError, Trace
from clustersim.workload import fit
from clustersim.workload.fit import LAGS, _correlation, _memory, fit_counts, fit_tokens, sample_like, sequences_of
from clustersim.workload.fit_score import LIMITS, distances, score_fit, split
from clustersim.workload.sampler_parameters import changed, load_parameters, read_parameters
from clustersim.workload.trace import read_trace, write_trace
from clustersim.workload.trace_counts import Counts, read_counts
from clustersim.workload.trace_rules import take

TINY = PACKAGE / "workload" / "data" / "tiny"


def sampled_trace(*, sequences=96, length=64, layers=4, experts=16, top_k=2, seed=1, **keys):
    """Tokens of the moderate preset, as if recorded; even sequences are of domain a, odd ones of b."""
    tokens = sequences * length
    blank = Trace(
        expert_ids=np.zeros((tokens, layers, top_k), np.int16), gate_weights=None, step=np.arange(tokens),
        rank=np.zeros(tokens, int), seq=np.repeat(np.arange(sequences) * 3, length),
        pos=np.tile(np.arange(length), sequences) + 7,
        phase=np.ones(tokens, np.uint8), n_experts=experts, domain={3 * s: "ab"[s % 2] for s in range(sequences)},
        meta={"model": "made up"},
    )
    return sample_like(changed(load_parameters("moderate"), {"domains": 2, **keys}), blank, sequences_of(blank), seed=seed)


@pytest.fixture(scope="module")
def fitted():
    trace = sampled_trace(topic=0.15, fast=0.35, slow=0.3, dimension=5)
    return trace, *fit_tokens(trace, rounds=8)


def test_what_tokens_were_sampled_with_is_found_again(fitted):
    """How the parameters share out the correlation of near and far tokens is not unique; the correlations are."""
    trace, parameters, notes = fitted
    true = changed(load_parameters("moderate"), {"topic": 0.15, "fast": 0.35, "slow": 0.3, "dimension": 5})
    assert notes == ()
    for lag in (1, 16):
        assert _correlation(parameters, lag).mean() == pytest.approx(_correlation(true, lag).mean(), abs=0.06)
    assert 3 < parameters.dimension.mean() < 8
    assert parameters.sharpness == pytest.approx(true.sharpness, rel=0.1)
    for i, domain in enumerate(parameters.domains):
        own = np.flatnonzero(np.isin(trace.seq, [s for s, name in trace.domain.items() if name == domain.name]))
        counted = np.bincount(trace.expert_ids[own, 2].ravel(), minlength=16)
        np.testing.assert_allclose(domain.load[2], counted / counted.sum(), atol=1e-3)
        assert (domain.name, domain.share) == ("ab"[i], pytest.approx(0.5))


def test_tokens_sampled_anew_look_like_those_that_were_fitted(fitted):
    trace, parameters, _ = fitted
    again = sample_like(parameters, trace, sequences_of(trace), seed=99)
    assert (again.expert_ids != trace.expert_ids).any()
    found = distances(again, trace)
    assert set(found) == set(LIMITS)
    for name, (_, distance) in found.items():
        assert distance <= LIMITS[name], name


def test_a_fit_is_the_same_twice(fitted):
    trace, parameters, _ = fitted
    again, _ = fit_tokens(trace, rounds=8)
    assert (again.topic == parameters.topic).all()
    assert (again.dimension == parameters.dimension).all()
    assert again.sharpness == parameters.sharpness


def test_the_shipped_trace_is_within_all_limits():
    """One split of a third of the trace; the whole table is `clustersim fit PATH --score`."""
    trace = read_trace(TINY)
    some = take(trace, np.flatnonzero(trace.seq % 3 == 0))
    scores = score_fit(some, seeds=1)
    assert [score.statistic for score in scores] == list(LIMITS)
    for score in scores:
        assert score.verdict == "holds", f"{score.statistic}: {score.sampled} > {score.limit}"
        assert score.sampled == score.worst
        assert score.real <= score.limit, "the parts of the trace are nearer to each other than we ask of the sampler"


def test_the_score_tells_a_sampler_that_is_wrong():
    """Independent tokens for correlated ones."""
    trace = sampled_trace(topic=0.2, slow=0.5, dimension=3)
    found = distances(sampled_trace(tokens="independent"), trace)
    missed = {name for name, (_, distance) in found.items() if distance > LIMITS[name]}
    assert missed >= LIMITS.keys() - {"load CV"}


def test_the_split_holds_30_percent_of_every_domain_out():
    trace = sampled_trace(sequences=40, length=4)
    fitted, held = split(trace, 0)
    assert np.unique(held.seq).size == 12
    assert not set(held.seq) & set(fitted.seq)
    assert [trace.domain[int(s)] for s in np.unique(held.seq)].count("a") == 6
    assert set(split(trace, 1)[1].seq) != set(held.seq)


def test_the_correlation_of_memories_is_what_the_sampler_has():
    """Without memories only the topic; with a memory that keeps everything its share of what is not the token's own."""
    p = load_parameters("moderate")
    alone = replace(p, fast=np.zeros(1), slow=np.zeros(1))
    assert (_memory(alone, 1), _correlation(alone, 5)) == (0, p.topic)
    lasting = replace(alone, slow=np.array([0.6]), slow_memory=0.9999)
    assert _memory(lasting, 1) == pytest.approx(0.36, abs=0.02)


def test_what_a_trace_cannot_tell_is_said_and_left_at_the_preset():
    moderate = load_parameters("moderate")
    single = replace(sampled_trace(sequences=300, length=1, layers=1), domain={}, gate_weights=None)
    parameters, notes = fit_tokens(single, rounds=2)
    assert [note.partition(":")[0] for note in notes] == [
        "no sequence has two tokens in a row", "there is one layer", "no two experts are expected together 50 times",
        "domains are not named", "gate weights were not recorded",
    ]
    assert parameters.fast == moderate.fast
    assert parameters.dimension == moderate.dimension
    assert (parameters.turn, parameters.sharpness) == (moderate.turn, moderate.sharpness)
    one = take(sampled_trace(sequences=1, length=400), np.arange(400))
    _, notes = fit_tokens(one, rounds=2)
    assert any(note.startswith("there is one sequence: topic") for note in notes)


def test_of_a_large_trace_a_part_is_sampled_anew_and_all_is_counted(monkeypatch):
    monkeypatch.setattr(fit, "MOST", 1000)
    trace = sampled_trace(sequences=30, length=50)
    parameters, notes = fit_tokens(trace, rounds=1)
    assert notes == ("loads are those of all tokens, everything else is fitted to 1,000 of 1,500",)
    own = trace.expert_ids[np.isin(trace.seq, [s for s, name in trace.domain.items() if name == "b"]), 1]
    counted = np.bincount(own.ravel(), minlength=16) + 0.5
    np.testing.assert_allclose(parameters.domains[1].load[1], counted / counted.sum())


def test_traces_that_cannot_be_fitted_or_split_are_refused():
    trace = sampled_trace(sequences=3, length=4)
    holes = trace.expert_ids.copy()
    holes[:, :, 1] = -1
    with pytest.raises(InputError, match="fit: 50% of the trace's choices are missing"):
        fit_tokens(replace(trace, expert_ids=holes))
    with pytest.raises(InputError, match="fit --score: the trace has 3 sequences; too few"):
        split(trace, 0)


def counts_file(folder, rows, experts=4, **meta):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    layer, domain, counts = zip(*rows, strict=True)
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(counts).astype(np.uint32)), experts)
    table = pa.table({"layer": pa.array(layer, pa.uint16()), "domain": pa.array(domain), "counts": values})
    table = table.replace_schema_metadata({"moetrace": json.dumps({"schema": "moetrace/1", "model": "m", **meta})})
    pq.write_table(table, folder / "counts.parquet")
    return folder


def test_counts_give_loads_by_layer_and_domain_and_nothing_else(tmp_path):
    """Two rows of a layer and domain add up; shares of domains are by choices: 400 and 1,200."""
    path = counts_file(tmp_path, [
        (0, "a", [40, 30, 20, 10]), (0, "a", [60, 70, 80, 90]), (7, "a", [300, 0, 0, 100]),
        (0, "b", [300] * 4), (7, "b", [300] * 4),
    ])  # fmt: skip
    counts = read_counts(path)
    assert (counts.model, counts.layers) == ("m", (0, 7))
    assert counts.choices["a"].tolist() == [[100] * 4, [300, 0, 0, 100]]
    parameters, notes = fit_counts(counts)
    assert [(domain.name, domain.share) for domain in parameters.domains] == [("a", 0.25), ("b", 0.75)]
    np.testing.assert_allclose(parameters.domains[0].load[1], [0.75, 0, 0, 0.25], atol=3e-3)
    assert parameters.domains[1].spread.tolist() == [1000, 1000], "even loads: a Dirichlet as good as even"
    assert parameters.topic == load_parameters("moderate").topic
    assert notes[0].startswith("counts do not tell how tokens hang together")
    assert "(0, 7)" in notes[1]


def test_counts_that_cannot_be_read_are_refused(tmp_path):
    good = [(0, "a", [1] * 4), (7, "a", [1] * 4), (0, "b", [1] * 4)]
    with pytest.raises(InputError, match="domain 'b' has no choices in layer 7"):
        read_counts(counts_file(tmp_path / "x", good))
    with pytest.raises(InputError, match="schema is 'other/1'; only 'moetrace/1' can be read"):
        read_counts(counts_file(tmp_path / "y", good, schema="other/1"))
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "counts.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match=r"counts\.parquet: not a Parquet file"):
        read_counts(tmp_path / "z")
    footer = {"moetrace": '{"schema": "moetrace/1"}'}
    pl.DataFrame({"layer": [0]}).write_parquet(tmp_path / "z" / "counts.parquet", metadata=footer)
    with pytest.raises(InputError, match="has no column 'counts'"):
        read_counts(tmp_path / "z")
    with pytest.raises(InputError, match=r"nowhere\.parquet: cannot be read"):
        read_counts(tmp_path / "nowhere.parquet")


def test_counts_can_be_made_by_hand():
    parameters, _ = fit_counts(Counts(model="m", layers=(0,), choices={"": np.array([[1, 3]])}))
    assert [domain.name for domain in parameters.domains] == ["unnamed"]


# ---- the command


def test_fit_writes_a_file_that_a_run_can_use(tmp_path, capsys):
    write_trace(sampled_trace(sequences=8, length=16), tmp_path / "t")
    assert main(["fit", str(tmp_path / "t"), "-o", str(tmp_path / "p.yaml")]) == 0
    said = capsys.readouterr()
    assert said.out == (
        f"parameters in {tmp_path}/p.yaml; sample from them: clustersim trace=sampled trace.parameters={tmp_path}/p.yaml\n"
    )
    parameters = read_parameters(tmp_path / "p.yaml", "x")
    assert parameters.shape == (4, 16)
    assert main(["fit", str(tmp_path / "t")]) == 0
    assert capsys.readouterr().out == (tmp_path / "p.yaml").read_text()
    small = ["topology.nodes=1", "workload.tokens_per_gpu=16", "network=bound", "model.n_layers=2", f"output={tmp_path}/r"]
    assert main([*small, "trace=sampled", f"trace.parameters={tmp_path}/p.yaml"]) == 0
    assert "p has the loads of 16 experts in 4 layers" in " ".join(capsys.readouterr().out.split())


def test_the_score_of_a_folder_of_traces_is_one_table(tmp_path, capsys):
    write_trace(sampled_trace(sequences=12, length=12), tmp_path / "one")
    counts_file(tmp_path / "two", [(0, "a", [1, 2, 3, 4])])
    assert main(["fit", str(tmp_path), "--score"]) == 0
    said = capsys.readouterr()
    assert "two: counts only" in said.err
    for word in ("one", "load CV", "spread between sequences", "real 70/30", "mean over layers"):
        assert word in said.out
    assert [line.split()[-1] for line in said.out.splitlines() if "overlap, lag 16" in line] == ["untold"], "too short"


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "takes one trace"), (["a", "b"], "takes one trace"), (["-x"], "takes one trace"),
    (["a", "-o"], "-o: needs the name of a file"), (["a", "-o", "f", "--score"], "prints a table"),
    (["nowhere"], "no such trace"), (["nowhere", "--score"], "there is no trace"),
])  # fmt: skip
def test_the_command_refuses_what_it_does_not_know_in_one_line(arguments, said, capsys):
    assert main(["fit", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_lags_include_those_that_the_memories_answer_for():
    assert {1, 16} <= set(LAGS)
