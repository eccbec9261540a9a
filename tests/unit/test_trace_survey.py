"""What one pass over a trace finds: loads as by hand, every injected fault by name, none where there is none."""

from dataclasses import replace

import numpy as np
import pytest

from clustersim.exchange import direct, node_dedup
from clustersim.exchange.counted import traffic_of
from clustersim.places import PACKAGE
from clustersim.results.trace_report import count_faults
from clustersim.types import InputError, Placement, Routing
from clustersim.workload import statistics, trace_survey
from clustersim.workload.trace import read_trace, write_trace
from clustersim.workload.trace_counts import CountRows
from clustersim.workload.trace_survey import survey
from tests.unit.test_trace import made_up

TINY = PACKAGE / "workload" / "data" / "tiny"


def text(n=2000, layers=6, seed=0):
    """A sound trace: sequences of 100 tokens whose experts change slowly, so that neighbours share more than tokens far apart."""
    rng = np.random.default_rng(seed)
    drift = rng.normal(size=(n, 1, 12))
    for i in range(1, n):
        if i % 100:
            drift[i] = 0.9 * drift[i - 1] + 0.44 * drift[i]
    scores = drift @ rng.normal(size=(layers, 12, 32)).transpose(1, 0, 2).reshape(12, -1)
    ids = np.argsort(-scores.reshape(n, layers, 32), axis=2)[:, :, :4].astype(np.int16)
    weights = -np.sort(-rng.random((n, layers, 4)).astype(np.float32), axis=2)
    trace = made_up(rng, tokens=n, layers=layers, experts=32, top_k=4)
    return replace(trace, expert_ids=ids, gate_weights=weights, seq=np.arange(n) // 100, pos=np.arange(n) % 100,
                   step=np.arange(n) // 400, domain={})


def faults_of(trace, path):
    write_trace(trace, path)
    return survey(path).faults


def test_a_sound_trace_has_no_faults(tmp_path):
    assert faults_of(text(), tmp_path) == []
    assert survey(TINY).faults == []


def spoilt():
    """What is done to a sound trace, and the words that must name it."""
    trace = text()
    ids = trace.expert_ids
    dummy, padding, copies = ids.copy(), ids.copy(), ids.copy()
    dummy[:300] = ids[0]
    padding[500:600] = -1
    copies[:, 3:] = ids[:, :3]
    pair = ids.copy()
    pair[:, 4] = ids[:, 1]
    turns = np.argsort(np.arange(2000) % 250, kind="stable")          # 8 runs of 250 tokens take turns
    flags = np.where(np.arange(2000) % 4, 0, 1).astype(np.uint8)
    return {
        "dummy pass": (replace(trace, expert_ids=dummy), "rows 0 to 299 all choose the same experts: a dummy profiling pass"),
        "padding": (replace(trace, expert_ids=padding), "100 tokens have no expert in any layer"),
        "flagged padding": (replace(trace, flags=flags), "500 of 2,000 tokens are flagged as padding"),
        "copied layers": (replace(trace, expert_ids=copies), "layer l + 3 is a copy of layer l, so only 3 of 6 are recorded"),
        "a copied layer": (replace(trace, expert_ids=pair), "layers 1 and 4 are copies of each other"),
        "interleaved": (replace(trace, expert_ids=ids[turns], seq=np.zeros(2000, int), pos=np.arange(2000),
                                step=np.zeros(2000, int)), "8 sequences seem to be interleaved"),
        "decode only": (replace(trace, phase=np.ones(2000, np.uint8)), "only decoding was recorded"),
        "batch of one": (replace(trace, step=np.arange(2000)), "every step is one token"),
        "unsorted slots": (replace(trace, gate_weights=trace.gate_weights[:, :, ::-1].copy()), "do not stand by descending gate"),
        "no weight": (replace(trace, gate_weights=trace.gate_weights * 0), "negative or all 0 in 12,000 layers of tokens"),
    }  # fmt: skip


@pytest.mark.parametrize("name", spoilt())
def test_an_injected_fault_is_named_and_nothing_else(tmp_path, name):
    trace, says = spoilt()[name]
    found = faults_of(trace, tmp_path)
    assert len(found) == 1, found
    assert says in found[0]


def test_all_faults_at_once_are_all_named(tmp_path):
    trace = spoilt()["copied layers"][0]
    ids = trace.expert_ids.copy()
    ids[:300], ids[1900:] = ids[0], -1
    trace = replace(trace, expert_ids=ids, phase=np.ones(2000, np.uint8), gate_weights=trace.gate_weights[:, :, ::-1].copy())
    found = " | ".join(faults_of(trace, tmp_path))
    for words in ("dummy profiling pass", "no expert in any layer", "copy of layer", "only decoding", "descending gate weight"):
        assert words in found


def test_a_run_of_equal_tokens_is_found_across_parts(tmp_path, monkeypatch):
    """Parts of 64 rows: the 300 dummy rows lie in five of them and are one run."""
    from clustersim.workload import trace_stream

    monkeypatch.setattr(trace_stream, "CHUNK_TOKENS", 64)
    trace, says = spoilt()["dummy pass"]
    assert says in faults_of(trace, tmp_path)[0]


def test_loads_and_sample_are_those_of_the_trace(tmp_path, monkeypatch):
    trace = read_trace(TINY)
    found = survey(TINY)
    np.testing.assert_array_equal(found.loads, statistics.expert_loads(trace.expert_ids, 32))
    np.testing.assert_array_equal(sum(found.by_domain.values()), found.loads)
    assert found.whole
    np.testing.assert_array_equal(found.sample.expert_ids, trace.expert_ids)
    monkeypatch.setattr(trace_survey, "SAMPLE_TOKENS", 800)
    part = survey(TINY)
    assert (part.sample.n_tokens, part.whole) == (800, False)
    np.testing.assert_array_equal(part.loads, found.loads)


def test_every_breach_is_listed_when_asked_and_the_first_raised_else(tmp_path):
    from tests.unit.test_trace import write_raw

    rows = {"step": [0, 0, 1], "rank": [0] * 3, "seq": [0] * 3, "pos": [1, 0, 0], "phase": [0] * 3}
    folder = write_raw(tmp_path, **rows, expert_ids=[bytes([0, 1, 2, 3])] * 3, meta={"num_tokens": 9})
    problems = survey(folder, strict=False).problems
    assert any("not in order" in problem for problem in problems)
    assert any("metadata num_tokens is 9; the rows have 3" in problem for problem in problems)
    broken = write_raw(tmp_path / "b", expert_ids=[bytes([0, 0, 2, 3])])
    assert "picked twice" in survey(broken, strict=False).problems[0]
    with pytest.raises(InputError, match="picked twice"):
        survey(broken)


def test_counts_that_repeat_or_count_nothing_are_named():
    counts = np.random.default_rng(0).integers(1, 9, (4, 8))
    counts[2:] = counts[:2]
    numbers = {name: np.zeros(5, int) for name in ("step", "step_end", "rank", "phase", "tokens")}
    counts = np.concatenate([counts, 0 * counts[:1]])
    rows = CountRows(counts=counts, layer=np.array([0, 1, 2, 3, 0]), domain=("",) * 5, **numbers)
    said = count_faults(rows)
    assert "1 of 5 rows count nothing" in said[0]
    assert "layer l + 2 is a copy of layer l" in said[1]


class Machine:
    n_gpus, n_nodes, gpus_per_node = 6, 3, 2
    node_of, local_of = np.arange(6) // 2, np.arange(6) % 2


class Bytes:
    top_k, dispatch_token_bytes, combine_token_bytes = 3, 7.0, 7.0


@pytest.mark.parametrize("experts", [6, 12, 300])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_counting_a_whole_trace_gives_what_the_exchanges_send(tmp_path, experts, missing):
    """`direct` layer by layer, and the NIC hops of `node_dedup`, which are tokens per source and other node."""
    rng = np.random.default_rng(experts)
    n = 90
    trace = made_up(rng, tokens=n, layers=3, experts=experts, top_k=3, missing=missing)
    trace = replace(trace, rank=np.arange(n) // 15, step=np.zeros(n, int), seq=np.zeros(n, int))
    write_trace(trace, tmp_path)
    placement = Placement(gpu_of=rng.permutation(experts) % 6, expert_of=rng.permutation(experts))
    owner = lambda rank, first: rank.astype(np.int64)                                              # noqa: E731
    plain = traffic_of(tmp_path, owner, placement, Machine)
    dedup = traffic_of(tmp_path, owner, placement, Machine, node_dedup=True)
    for layer in range(3):
        ids = trace.expert_ids[:, layer].astype(np.int64)
        routing = Routing(asked=ids, assigned=ids, weights=None, source=trace.rank, index=np.arange(n) % 15, capacity=None)
        sent = direct("dispatch", routing, placement, Machine, Bytes)
        expected = np.zeros((6, 6))
        expected[sent.src, sent.dst] = sent.nbytes
        np.testing.assert_array_equal(plain.matrix(layer, 7.0), expected)
        sent = node_dedup("dispatch", routing, placement, Machine, Bytes, metadata_bytes=0)
        nic = Machine.node_of[sent.src] != Machine.node_of[sent.dst]
        hops = np.zeros((6, 3))
        np.add.at(hops, (sent.src[nic], Machine.node_of[sent.dst[nic]]), sent.nbytes[nic] / 7.0)
        np.testing.assert_array_equal(dedup.nodes[layer], hops)
    with pytest.raises(InputError, match="need a placement with one slot for each"):
        traffic_of(tmp_path, owner, Placement(gpu_of=np.zeros(2, int), expert_of=np.zeros(2, int)), Machine)
