"""What a placement is decided on, and what it costs to change: the past only, real transfers, sums that can be done by hand."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import clustersim as cs
from clustersim import assembling, deciding, exchange, inputs, load_cluster
from clustersim.config import compose
from clustersim.deciding import Setting, decided, nothing_seen, plan_periodic, steps_seen
from clustersim.engine.gpu import PARTS, LayerWork, play, time_alone
from clustersim.engine.timing import roofline
from clustersim.model import model_from
from clustersim.network import bound, fluid
from clustersim.placement import contiguous, eplb_global, round_robin
from clustersim.placement.measures import balancedness, least_max_load, measure, utilisation
from clustersim.placement.migration import moves_between, transfers_of
from clustersim.placement.replicas import token_hash
from clustersim.results.placements import rebalance_summary
from clustersim.types import Choices, InputError, Placement, Workload, independent
from tests.placed import place, room

MODEL = model_from({**compose(["model=gpt_oss_20b"]).config["model"], "n_layers": 2, "n_experts": 8, "top_k": 1})
CLUSTER = load_cluster("ideal_rail", nodes=2, gpus_per_node=2)
SETTING = Setting(
    model=MODEL, cluster=CLUSTER, room=room(12, 4, 2), exchange=exchange.node_dedup, timing=roofline(MODEL, CLUSTER.gpu),
    replica="nearest", seed=0,
)
SMALL = [
    "topology.nodes=2", "topology.gpus_per_node=4", "workload.tokens_per_gpu=32", "model.n_layers=3", "placement.replica=nearest",
]  # fmt: skip


def step(hot, per_gpu=12, asked=None):
    """A step in which `hot` is chosen by half of the tokens, and the others by the rest in turn."""
    n = 4 * per_gpu
    ids = np.where(np.arange(n) % 2 == 0, hot, np.arange(n) % 8)[:, None]

    def choose(layer):
        if asked is not None:
            asked.append(hot)
        return Choices(ids=(ids + layer) % 8, weights=None)

    source, index = np.repeat(np.arange(4), per_gpu), np.tile(np.arange(per_gpu), 4)
    return Workload(source=source, index=index, context=index + 1, choose=choose)


def periodic(stream, **keys):
    given = {"window": 2, "period": 2, "warmup": 2, "migration": "exposed", "double_buffer": True, "horizon": None} | keys
    return plan_periodic(SETTING, eplb_global, stream, first=contiguous, **given)


def most_replicas(placements):
    """The expert with the most slots, of each layer."""
    return [int(np.bincount(p.expert_of, minlength=8).argmax()) for p in placements]


# ---- the past only


def test_a_placement_sees_steps_that_are_over_and_never_its_own():
    """Each step has another hot expert. What serves step t was decided on the two before its decision, and nobody else's."""
    asked = []
    stream = [step(hot, asked=asked) for hot in range(8)]
    plan = periodic(stream, window=1)
    assert [most_replicas(p)[0] for p in plan.placements] == [1, 1, 3, 3, 5, 5]      # for steps 2 to 7, decided at 2, 4 and 6
    assert [most_replicas(p)[1] for p in plan.placements] == [2, 2, 4, 4, 6, 6], "every layer by its own load"
    assert set(asked) == {1, 3, 5}, "no other step was looked at"
    plan.placements[0][0].expert_of.sum()
    asked.clear()
    periodic(stream, window=3, period=3, warmup=3)
    assert set(asked) == {0, 1, 2, 3, 4, 5}, "steps 3 to 5 for the decision at 6; 6 and 7 for none"


def test_what_the_future_brings_does_not_change_what_is_decided():
    past = [step(1), step(2)]
    one, other = (periodic([*past, step(hot), step(hot)]).placements for hot in (5, 6))
    for a, b in zip(one, other, strict=True):
        for layer in range(2):
            assert (a[layer].expert_of == b[layer].expert_of).all()


@pytest.mark.parametrize("name", ["eplb", "local_search"])
def test_once_decides_on_sequences_that_are_not_played(name, monkeypatch):
    """What a placement is shown is the past of the stream, which shares no sequence with its steps (see the stream's tests)."""
    shown = []
    real = deciding.steps_seen

    def spy(setting, past):
        shown.append(past)
        return real(setting, past)

    monkeypatch.setattr(inputs, "steps_seen", spy)
    parts = assembling.assemble(compose([*SMALL, f"placement={name}"]))
    assert shown == [parts.stream.past]
    assert len(shown[0]) == 1
    apart = assembling.assemble(compose([*SMALL, "placement=contiguous", "decide.apart=true"]))
    assert (apart.stream.steps[0].choose(0).ids == parts.stream.steps[0].choose(0).ids).all(), "the same tokens to compare"
    plain = assembling.assemble(compose([*SMALL, "placement=contiguous"]))
    assert not plain.stream.past


def test_layers_have_placements_of_their_own_and_next_layer_sees_the_one_before():
    found = decided(SETTING, eplb_global, steps_seen(SETTING, [step(3)]), None)
    assert most_replicas(found) == [3, 4]
    seen = []

    def spy(rng, past, room):
        seen.append(past)
        return contiguous(rng, past, room)

    decided(SETTING, spy, steps_seen(SETTING, [step(3)]), found)
    assert seen[0].before is None
    asked, placed = seen[1].before
    assert (asked == step(3).choose(0).ids).all()
    assert (placed.expert_of == np.arange(12) % 8).all()
    assert seen[1].now is found[1]


# ---- moves


def test_only_what_a_gpu_did_not_hold_moves_and_from_the_own_node_if_it_can():
    nodes = np.array([0, 0, 1, 1])
    old = Placement(gpu_of=np.array([0, 0, 1, 1, 2, 2, 3, 3]), expert_of=np.array([0, 1, 2, 3, 0, 5, 6, 7]))
    new = Placement(gpu_of=old.gpu_of, expert_of=np.array([1, 0, 2, 0, 0, 5, 5, 5]))
    move = moves_between(old, new, nodes)
    # GPU 0 only turned its slots around; GPU 1 gets 0 from GPU 0, of its node, over 3; GPU 3 gets 5 once for two slots
    assert (move.expert.tolist(), move.src.tolist(), move.dst.tolist()) == ([0, 5], [0, 2], [1, 3])
    assert move.replaced.tolist() == [3, 6]


def test_several_wishes_for_an_expert_are_shared_by_those_who_have_it():
    old = Placement(gpu_of=np.arange(6), expert_of=np.array([0, 0, 1, 2, 3, 4]))
    new = Placement(gpu_of=np.arange(6), expert_of=np.array([0, 0, 0, 0, 0, 0]))
    move = moves_between(old, new, np.zeros(6, int))
    assert np.bincount(move.src).tolist() == [2, 2]


def test_an_expert_comes_from_the_own_node_though_others_have_sent_less():
    """GPUs 1 and 3 want expert 0, which 0 and 2 hold: 1 asks 0, of its node, as 3 asks 2. So do 1's and 2's neighbours."""
    nodes = np.array([0, 0, 0, 1])
    old = Placement(gpu_of=np.arange(4), expert_of=np.array([0, 1, 2, 0]))
    move = moves_between(old, Placement(gpu_of=np.arange(4), expert_of=np.array([0, 0, 0, 0])), nodes)
    assert (move.src.tolist(), move.dst.tolist()) == ([0, 0], [1, 2])


def test_with_a_double_buffer_all_moves_go_at_once_and_without_they_wait_for_what_they_overwrite():
    """A chain: GPU 0's expert goes to 1, whose expert goes to 2, whose expert is no longer wanted there."""
    old = Placement(gpu_of=np.array([0, 1, 2, 3]), expert_of=np.array([0, 1, 2, 2]))
    new = Placement(gpu_of=np.array([0, 1, 2, 3]), expert_of=np.array([0, 0, 1, 2]))
    move = moves_between(old, new, np.zeros(4, int))
    together, _ = transfers_of([move], 100.0, double_buffer=True)
    assert together.after.size == 0
    chain, staged = transfers_of([move], 100.0, double_buffer=False)
    assert staged == 0
    assert (chain.src.tolist(), chain.dst.tolist(), chain.after.tolist()) == ([1, 0], [2, 1], [0])
    one = load_cluster("ideal_rail", nodes=1, gpus_per_node=4)
    bandwidth = 450e9
    for transfers, hops in ((together, 1), (chain, 2)):
        assert time_alone(one, fluid, transfers) == pytest.approx(hops * 100 / bandwidth)


def test_a_ring_of_moves_is_broken_by_one_that_is_put_aside():
    old = Placement(gpu_of=np.arange(3), expert_of=np.array([0, 1, 2]))
    new = Placement(gpu_of=np.arange(3), expert_of=np.array([2, 0, 1]))
    move = moves_between(old, new, np.zeros(3, int))
    transfers, staged = transfers_of([move, move], 100.0, double_buffer=False)
    assert staged == 2, "one for the ring of each layer"
    assert transfers.after.size == 4
    assert (transfers.after < np.repeat(np.arange(transfers.n), np.diff(transfers.after_start))).all()


def test_what_is_put_aside_waits_for_nobody():
    """GPUs 0 and 1 exchange experts 0 and 1, and GPU 2 gets expert 0 too. What comes to GPU 0 is put aside meanwhile."""
    old = Placement(gpu_of=np.arange(3), expert_of=np.array([0, 1, 2]))
    new = Placement(gpu_of=np.arange(3), expert_of=np.array([1, 0, 0]))
    transfers, staged = transfers_of([moves_between(old, new, np.zeros(3, int))], 100.0, double_buffer=False)
    assert staged == 1
    assert (transfers.src.tolist(), transfers.dst.tolist()) == ([0, 1, 0], [2, 0, 1])
    assert transfers.after_start.tolist() == [0, 0, 0, 1]
    assert transfers.after.tolist() == [1]


def test_exposed_moves_hold_a_step_up_and_free_ones_do_not():
    stream = [step(1), step(1), step(5), step(5), step(5), step(5)]
    exposed, free = periodic(stream), periodic(stream, migration="free")
    assert exposed.rebalances == free.rebalances == 1
    assert [moves is None for moves in exposed.moves] == [True, True, False, True]
    assert all(moves is None for moves in free.moves)
    assert exposed.moved[2].sum() == exposed.moves[2].n > 0
    assert (exposed.moved[2] == free.moved[2]).all()
    expert = MODEL.expert_params * MODEL.expert_weight_bytes
    assert exposed.moves[2].nbytes.tolist() == [expert] * exposed.moves[2].n
    assert exposed.buffer_bytes == np.bincount(exposed.moves[2].dst).max() * expert
    assert periodic(stream, double_buffer=False).buffer_bytes <= expert


def test_overlapped_moves_travel_beside_a_step_and_serve_from_the_next_on():
    stream = [step(1), step(1), step(5), step(5), step(5), step(5)]
    plan = periodic(stream, migration="overlapped")
    assert [moves is None for moves in plan.moves] == [True, True, False, True]
    assert [most_replicas(p)[0] for p in plan.placements] == [1, 1, 1, 5]
    assert [most_replicas(p)[0] for p in periodic(stream).placements] == [1, 1, 5, 5]


def test_a_move_breaks_even_when_what_it_held_up_is_gained_back():
    """A pass of 10 s takes 12 with moves beside it and 8 after them: they cost 4 s, which is two gains."""

    def steps(*seconds, beside=()):
        moved = [SimpleNamespace(moved_slots=1)]
        played = [SimpleNamespace(step_s=s, background_s=float(i in beside)) for i, s in enumerate(seconds)]
        return [SimpleNamespace(played=one, held_s=0.0, measured=moved) for one in played]

    row = rebalance_summary(
        steps(12.0, 8.0, 8.0, beside=[0]), steps(10.0, 10.0, 10.0), rebalances=1, expert_bytes=5.0, buffer_bytes=7.0
    )
    assert row["gross_gain"] == pytest.approx(0.2)
    assert row["net_gain"] == pytest.approx(1 - 28 / 30)
    assert row["break_even_steps"] == pytest.approx(2.0)
    assert (row["moved_experts"], row["migration_bytes"], row["buffer_bytes"]) == (3, 15.0, 7.0)


def test_moves_that_would_not_pay_in_time_are_not_made():
    stream = [step(1), step(1), step(5), step(5), step(5), step(5)]
    patient, hasty = periodic(stream, horizon=10**6), periodic(stream, horizon=1)
    assert (patient.rebalances, hasty.rebalances) == (1, 0)
    assert any("would not pay within 1 steps; they stay" in note for note in hasty.notes)
    assert most_replicas(hasty.placements[-1])[0] == 1


def test_what_travels_beside_a_pass_takes_its_share_of_the_links():
    """Two flows of 1 ms each out of one NIC at once take 2 ms; the pass ends with its own."""
    cluster = load_cluster("ideal_rail", nodes=2, gpus_per_node=1)
    idle = np.zeros(2)

    def one(src, dst, seconds):
        return independent(np.array([src]), np.array([dst]), np.array([50e9 * seconds]))

    work = LayerWork(attention_s=idle, expert_s=idle, other_s=idle, dispatch=one(0, 1, 1e-3), combine=one(1, 0, 1e-3))
    alone = play(cluster, fluid, 1, lambda layer: work)
    assert alone.step_s == pytest.approx(2e-3)
    assert alone.background_s == 0.0
    beside = play(cluster, fluid, 1, lambda layer: work, background=one(0, 1, 1e-3))
    assert beside.step_s == pytest.approx(3e-3)
    assert beside.background_s == pytest.approx(2e-3)
    apart = play(cluster, bound, 1, lambda layer: work, background=one(0, 1, 1e-3))
    assert apart.step_s == pytest.approx(2e-3), "exchanges in progress do not contend under bound"
    assert time_alone(cluster, fluid, one(0, 1, 1e-3)) == pytest.approx(1e-3)


# ---- a whole run


def test_a_run_that_moves_experts_accounts_for_every_second_and_byte():
    keys = ["workload.steps=6", "placement=eplb", "placement.spare=1", "decide=periodic", "decide.warmup=2", "decide.period=2"]
    result = cs.simulate([*SMALL, *keys])
    s, tables = result.summary, result.tables
    assert s["steps"] == 4
    assert s["rebalances"] == 1
    assert tables["layers"]["step"].unique().to_list() == [0, 1, 2, 3]
    assert s["moved_experts"] == tables["placements"]["moved_experts"].sum() > 0
    expert = MODEL.expert_params * MODEL.expert_weight_bytes
    assert s["migration_bytes"] == s["moved_experts"] * expert
    played = tables["gpus"].select(pl.sum_horizontal(PARTS)).to_series().sum() / 8 / 4
    assert s["step_s"] == pytest.approx(played + s["migration_s"], rel=1e-9)
    still = s["never_moved_step_s"]
    assert s["net_gain"] == pytest.approx(1 - s["step_s"] / still)
    assert s["gross_gain"] == pytest.approx(1 - played / still)
    if s["gross_gain"] > 0:
        assert s["break_even_steps"] == pytest.approx(s["migration_s"] * 4 / (s["gross_gain"] * still))

    first = cs.simulate([*SMALL, *keys[:-1], "decide.period=null"])
    assert first.summary["step_s"] == pytest.approx(still, rel=1e-12), "never moved is the first placement throughout"
    assert "rebalances" not in first.summary


def test_a_load_file_decides_and_one_of_another_model_is_refused(tmp_path):
    def write(hot):
        counts = np.ones((2, 32), np.int64)
        counts[0, hot], counts[1, 9] = 1000, 1000
        frame = pl.DataFrame({"step": [0, 0], "layer": [0, 1], "domain": ["a", "a"], "counts": counts})
        meta = {"moetrace": json.dumps({"schema": "moetrace/1", "kind": "counts", "model": "some model"})}
        frame.write_parquet(tmp_path / "counts.parquet", metadata=meta)

    write(7)
    keys = ["placement=eplb", "placement.spare=1", "decide=load_file", f"decide.path={tmp_path}"]
    parts = assembling.assemble(compose([*SMALL, *keys]))
    assert [int(np.bincount(p.expert_of).argmax()) for p in parts.plan.placements[0]] == [7, 9, 7], "layers repeat"
    before = cs.simulate([*SMALL, *keys]).run_id
    with pytest.raises(InputError, match=r"decide\.path=.*: the load of 32 experts \(some model\); model olmoe_1b_7b has 64"):
        assembling.assemble(compose([*SMALL, *keys, "model=olmoe_1b_7b", "trace=balanced"]))
    with pytest.raises(InputError, match="looks at tokens, and the load that it is to be decided on has counts only"):
        assembling.assemble(compose([*SMALL, *keys, "placement=coactivation"]))
    write(8)
    assert cs.simulate([*SMALL, *keys]).run_id != before, "the run depends on what the file holds"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["decide.window=0"], r"decide\.window=0: must be a whole number of steps from 1 up"),
        (["decide.period=0"], r"decide\.period=0: .* \(null: decided once only\)"),
        (["decide.warmup=6"], r"decide\.warmup=6: leaves no step to play of 6"),
        (["decide.migration=hidden"], r"decide\.migration=hidden: must be exposed, overlapped or free"),
        (["decide.migration=overlapped", "decide.double_buffer=false"], r"decide\.double_buffer=false: .* overlapped needs it"),
        (["decide.warmup=0", "decide.period=null"], r"decide\.period=null: decided once, on the warm-up"),
        (["decide.first=eplb"], r"decide\.first=eplb: there is no past yet"),
        (["decide.horizon=0"], r"decide\.horizon=0: must be a whole number of steps"),
        (["model.hidden=2000000", "model.expert_ffn=2000000"], r"model=gpt_oss_20b: no GPU of h100_sxm can hold an expert"),
        (["router=topology_aware", "trace=sampled"], r"placement: is decided on where tokens of gpt_oss_20b go"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_said(keys, said):
    with pytest.raises(InputError, match=said):
        assembling.assemble(compose([*SMALL, "placement=eplb", "decide=periodic", "workload.steps=6", *keys]))


# ---- measures


def test_copies_nodes_and_bounds_of_a_placement_by_hand():
    """Two nodes of two GPUs, four experts in order, two tokens of two choices on GPUs 0 and 3."""
    p = place("contiguous", 4, 4, 4)
    slots = np.array([[0, 3], [2, 3]])
    m = measure(slots, np.array([0, 3]), p, np.ones(4, int), np.array([0, 0, 1, 1]))
    assert (m.max_load, m.mean_load, m.imbalance) == (2, 1.0, 2.0)
    assert m.cross_copies == 1                      # token 0 to node 1; token 1 is there already
    assert (m.distinct_nodes, m.distinct_gpus) == (1.5, 2.0)
    assert m.least_max_load == 2                    # expert 3 has two tokens and one slot
    assert least_max_load(np.array([0.0, 0, 1, 3]), np.array([2, 1, 1, 1])) == 1.5, "the fifth slot halves expert 3"
    assert least_max_load(np.array([3.0, 3, 3, 3]), np.ones(2, int) * 4) == 6, "the mean of two GPUs"


def test_balancedness_is_vllms_ratio_of_sums_and_sglangs_mean_of_ratios():
    p = Placement(gpu_of=np.arange(2), expert_of=np.arange(2))
    even, uneven = (
        measure(np.array(slots), np.zeros(4, int), p, np.ones(2, int), np.zeros(2, int)) for slots in ([[0], [1]] * 2, [[0]] * 4)
    )
    assert balancedness([even, uneven]) == pytest.approx((2 + 2) / (2 + 4))
    assert utilisation([even, uneven]) == pytest.approx((1 + (2 + 1e-5) / (4 + 1e-5)) / 2)
    nothing = measure(np.full((2, 1), -1), np.zeros(2, int), p, np.ones(2, int), np.zeros(2, int))
    assert balancedness([nothing]) == utilisation([nothing]) == 1.0


def test_no_placement_is_better_than_the_bound():
    rng = np.random.default_rng(4)
    for _ in range(50):
        n_slots = int(rng.integers(8, 16))
        extra = rng.integers(0, 8, n_slots - 8)
        p = Placement(gpu_of=rng.integers(0, 4, n_slots), expert_of=rng.permutation(np.concatenate((np.arange(8), extra))))
        asked = rng.integers(0, 8, (60, 1)) // rng.integers(1, 3)
        slots = token_hash(asked, np.arange(60), np.zeros(60, int), p, np.zeros(4, int))
        m = measure(slots, np.zeros(60, int), p, np.bincount(p.gpu_of, minlength=4), np.zeros(4, int))
        assert m.max_load >= m.least_max_load - 1e-9


def test_nothing_seen_is_enough_for_what_does_not_look():
    found = decided(SETTING, round_robin, nothing_seen(SETTING), None)
    assert [p.replica for p in found] == ["nearest"] * 2
    assert replace(found[0]).n_slots == 12
