"""What each cause of a slow layer costs, where that is known beforehand; and pieces of a run without a cause."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clustersim as cs
from clustersim.causes import CAUSES, causes_of, even_sources, evened, ports_alone
from clustersim.results.tables import CAUSE_COLUMNS
from clustersim.types import InputError, Workload
from clustersim.workload.trace import read_trace, write_trace
from tests.e2e.test_bad_input import trace_of

IDEAL = [
    "topology=ideal_rail", "topology.nodes=2", "topology.gpus_per_node=4", "workload.tokens_per_gpu=32", "model.n_layers=2",
    "causes=true", "network=bound", "compute=none", "exchange.metadata_bytes=0",
]  # fmt: skip


def layers(*overrides):
    return cs.simulate([*IDEAL, *overrides]).tables["layers"].select(CAUSE_COLUMNS)


@given(places=st.lists(st.integers(-1, 6), min_size=1, max_size=60), seed=st.integers(0, 5))
def test_evened_choices_are_even_and_as_few_as_need_be_are_changed(places, seed):
    """What a place has above its share has to move; a share is the mean, rounded up for those that have most."""
    before = np.array(places).reshape(-1, 1)
    after = evened(np.random.default_rng(seed), before, 7)
    assert ((after < 0) == (before < 0)).all()
    load = [np.bincount(x[x >= 0], minlength=7) for x in (before, after)]
    assert np.ptp(load[1]) <= 1
    n = (before >= 0).sum()
    share = np.sort(np.full(7, n // 7) + (np.arange(7) < n % 7))
    assert (after != before).sum() == np.maximum(0, np.sort(load[0]) - share).sum()


def test_tokens_dealt_evenly_stand_in_order_and_are_numbered_on_every_gpu():
    tokens = Workload(
        source=np.array([0, 0, 0, 0, 0, 1, 2]), index=np.array([0, 1, 2, 3, 4, 0, 0]), context=np.arange(1, 8), choose=None,
    )
    even = even_sources(tokens, 3)
    assert even.source.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert even.index.tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert even.context is tokens.context


def test_the_parts_sum_to_the_layer():
    rng = np.random.default_rng(0)
    actual, ideal = rng.random(5), rng.random(5)
    found = causes_of(actual, {cause: rng.random(5) for cause in CAUSES}, ideal)
    assert tuple(found) == CAUSE_COLUMNS
    np.testing.assert_allclose(sum(found[name] for name in CAUSE_COLUMNS[1:]), actual, rtol=1e-12)


def test_a_layer_that_is_even_already_has_no_causes():
    """Balanced choices, one copy per node, ports alone: nothing to save, so all of it is ideal."""
    found = layers("trace=balanced", "exchange.chunk_tokens=1", "placement.slots=32")
    for name in (f"{cause}_s" for cause in CAUSES):
        np.testing.assert_allclose(found[name], 0, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(found["ideal_s"], found["moe_s"], rtol=1e-9)


def skewed(tmp_path):
    """A trace in which every token chooses the same four experts, of the first GPU."""
    trace = trace_of(tokens=8 * 32, layers=2)
    ids = np.broadcast_to(np.arange(4, dtype=np.int16), trace.expert_ids.shape)
    write_trace(replace(trace, expert_ids=ids.copy()), tmp_path / "skewed")
    assert read_trace(tmp_path / "skewed").expert_ids.max() == 3
    return ["trace=file", f"trace.path={tmp_path / 'skewed'}", "placement.slots=32"]


def test_skew_is_a_matter_of_popularity_and_placement_alike_and_of_nothing_else(tmp_path):
    """Even popularity cures it, and so does even placement: what one saves the other need not save again."""
    run = [text for text in IDEAL if not text.startswith("exchange")]
    found = cs.simulate([*run, *skewed(tmp_path), "exchange=direct"]).tables["layers"]
    moe, ideal = found["moe_s"], found["ideal_s"]
    assert (ideal < 0.5 * moe).all()
    for name in ("popularity_s", "placement_s"):
        assert (found[name] > 0.4 * moe).all(), name
    assert (found["joint_s"] < -0.3 * moe).all()
    np.testing.assert_allclose(found["source_s"], 0, atol=0)


def test_an_oversubscribed_fabric_is_a_matter_of_topology():
    """Nodes of four NICs behind a trunk of one: without contention behind the ports the run is that of a full trunk."""
    narrow = ["topology.nic.oversubscription=4", "topology.nic.rails=false"]
    even = ["trace=balanced", "exchange.chunk_tokens=1", "placement.slots=32"]
    found, full = layers(*narrow, *even), layers(*even)
    np.testing.assert_allclose(found["moe_s"] - found["topology_s"], full["moe_s"], rtol=1e-6)
    assert (found["topology_s"] > 0.5 * found["moe_s"]).all()


def test_sending_a_copy_for_every_expert_is_a_matter_of_the_exchange():
    run = [text for text in IDEAL if not text.startswith("exchange")]
    direct_, dedup = (
        cs.simulate([*run, f"exchange={name}", "placement.slots=32", *more]).tables["layers"]
        for name, more in (("direct", []), ("node_dedup", ["exchange.metadata_bytes=0", "exchange.chunk_tokens=1"]))
    )
    np.testing.assert_allclose(direct_["exchange_s"], direct_["moe_s"] - dedup["moe_s"], rtol=1e-9)
    np.testing.assert_allclose(dedup["exchange_s"], 0, atol=1e-15)


def test_dense_layers_and_runs_that_do_not_ask_have_null():
    dense = cs.simulate([*IDEAL, "model=deepseek_v2_lite", "trace=sampled", "model.n_layers=3"])
    assert dense.tables["layers"]["moe_s"].null_count() == 1
    assert dense.summary["moe_s"] == pytest.approx(dense.tables["layers"]["moe_s"].sum())
    plain = cs.simulate([text for text in IDEAL if text != "causes=true"])
    for name in CAUSE_COLUMNS:
        assert plain.tables["layers"][name].null_count() == 2
        assert plain.tables["layers"][name].dtype == plain.tables["summary"][name].dtype == pl.Float64
        assert plain.summary[name] is None


@pytest.mark.parametrize("more", [["capacity.factor=0.75"], ["exchange=direct", "capacity=tutel"], ["router=random"]])
def test_causes_are_found_with_drops_padding_and_other_routers(more):
    sampled = [text for text in IDEAL if not text.startswith("exchange")]
    found = cs.simulate([*sampled, "trace=sampled", *more]).tables["layers"]
    parts = [found[name] for name in CAUSE_COLUMNS[1:]]
    np.testing.assert_allclose(np.sum(parts, axis=0), found["moe_s"], rtol=1e-9)


def test_ports_are_the_links_at_gpus():
    cluster = cs.load_cluster("h100_2to1")
    kept = {link.kind for link, rate in zip(cluster.links, ports_alone(cluster).capacity, strict=True) if np.isfinite(rate)}
    assert kept == {"nvlink_up", "nvlink_down", "nic_up", "nic_down"}


def test_counts_are_not_enough():
    with pytest.raises(InputError, match="causes=true: needs single tokens"):
        cs.simulate([*IDEAL[:-1], "model=olmoe_1b_7b", "trace=sampled", "trace.counts=true", "exchange=direct"])
    with pytest.raises(InputError, match="causes=1: must be true or false"):
        cs.simulate(["causes=1"])
