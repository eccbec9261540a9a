"""Experts cut over expert-tensor groups: who sends what, FLOPs that are dealt otherwise, closed forms of what a group gathers."""

import numpy as np
import pytest

from clustersim import exchange, load_cluster
from clustersim.architecture import describe
from clustersim.config import compose
from clustersim.engine.collectives import ring_s, wires_of
from clustersim.engine.machines import Machine
from clustersim.engine.memory import Load, need
from clustersim.model import Attention, Model
from clustersim.parallel import Parallel
from clustersim.training import folding
from clustersim.training.layers import routed_passes
from clustersim.types import InputError, Placement, Routing
from tests.unit.test_training import trained

HEADS = Attention(kind="gqa", heads=4, kv_heads=4, head_dim=16)
MODEL = Model(name="m", n_layers=1, n_experts=8, top_k=2, hidden=64, expert_ffn=128, vocab=1, attention=HEADS)
EVEN = ["trace=balanced", "parallel.pipeline=1", "exchange=direct"]


def routing_of(rng, n_gpus, tokens, experts, k=2):
    source = np.repeat(np.arange(n_gpus), tokens)
    asked = np.argsort(rng.random((source.size, experts)), axis=1)[:, :k]
    index = np.tile(np.arange(tokens), n_gpus)
    return Routing(asked=asked, assigned=asked, weights=None, source=source, index=index, capacity=None)


class Bytes:
    top_k, hidden, dispatch_token_bytes, combine_token_bytes = 2, 8, 16.0, 16.0


def test_a_gpu_sends_to_the_one_of_its_place_in_the_experts_group():
    """The first stage of `exchange=tensor_expert`, which models the same dispatcher on its own."""
    cluster, experts, tensor = load_cluster("h100_sxm", nodes=1), 8, 2
    routing = routing_of(np.random.default_rng(0), 8, 32, experts)
    leaders = Placement(gpu_of=np.arange(experts) // 2 * tensor, expert_of=np.arange(experts))
    sent = folding.folded(exchange.direct, tensor)("dispatch", routing, leaders, cluster, Bytes())
    whole = exchange.tensor_expert("dispatch", routing, leaders, cluster, Bytes(), tensor=tensor)
    assert (sent.src % tensor == sent.dst % tensor).all()
    first = np.diff(whole.after_start) == 0
    among = ((sent, np.ones(sent.n, bool)), (whole, first & (whole.src % tensor == whole.dst % tensor)))
    pairs = [sorted(zip(*(column[m].tolist() for column in (t.src, t.dst, t.nbytes)), strict=True)) for t, m in among]
    assert pairs[0] == pairs[1]


def counting():
    """A machine on which everything takes its FLOPs and moving nothing."""

    def grouped(rows, owner, n_gpus, n, k):
        return np.bincount(owner, 2.0 * rows * n * k, n_gpus)

    return Machine(
        product=lambda rows, n, k: 2.0 * rows * n * k, weight_product=lambda rows, n, k: 2.0 * rows * n * k, grouped=grouped,
        grouped_weight=grouped, mixing=lambda flops, back: flops, move=lambda count, nbytes: np.zeros(nbytes.size),
    )  # fmt: skip


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_cutting_experts_deals_their_flops_otherwise_and_makes_none(tensor):
    rows, leader = np.arange(1, 9) * 10, np.arange(8) // tensor * tensor
    made = routed_passes(MODEL, rows, leader, 8, counting(), tensor)
    flops = 2.0 * rows.sum() * 3 * 64 * 128
    assert made.forward_s.sum() == made.input_s.sum() == made.weight_s.sum() == pytest.approx(flops, rel=1e-12)
    groups = made.forward_s.reshape(-1, tensor)
    assert (groups == groups[:, :1]).all(), "every GPU of a group does as much"


@pytest.mark.parametrize(("tensor", "expert"), [(2, 1), (4, 1), (2, 2)])
def test_a_group_gathers_before_its_experts_and_scatters_behind_them(tensor, expert):
    """Every layer twice each way, over the rows of the group: all of its tokens' choices, `top_k` of each, with even routing."""
    result = trained(*EVEN, "compute=none", f"parallel.expert_tensor={tensor}", f"parallel.expert={expert}")
    tasks = result.tables["tasks"]
    top_k, hidden, layers = 4, 2880, 4
    wires = wires_of(load_cluster("h100_sxm", nodes=1, gpus_per_node=4))
    rows = tensor * 256 * top_k
    each = sum(ring_s(rows * token, np.arange(tensor), wires) for token in (hidden * 2.0, hidden * 2.0))
    for kind in "FB":
        took = tasks.filter(tasks["kind"] == kind)["sent_s"]
        np.testing.assert_allclose(took, layers * each, rtol=1e-9)


def test_an_expert_tensor_group_of_one_changes_nothing():
    plain, said = trained("trace=sampled"), trained("trace=sampled", "parallel.expert_tensor=1")
    assert plain.tables["tasks"].equals(said.tables["tasks"])


def test_no_expert_leaves_a_group_of_all_gpus():
    """Expert-tensor alone: every token's choices stay in the group; nothing is exchanged."""
    stages = trained(*EVEN, "parallel.expert_tensor=4", "parallel.expert=1").tables["stages"]
    assert stages["exchanged_s"].sum() == 0
    assert stages["sent_s"].sum() > 0


def test_experts_may_be_fewer_than_the_gpus_that_share_them():
    """Mixtral's 8 experts on 16 GPUs: 4 groups of 4, two experts each."""
    result = trained(
        "model=mixtral_8x7b", "model.n_layers=2", *EVEN, "topology.nodes=2", "topology.gpus_per_node=8", "parallel.expert=4",
        "parallel.expert_tensor=4", "memory=ignore",
    )  # fmt: skip
    assert result.summary["imbalance"] == pytest.approx(1.0)


def test_what_a_gpu_holds_of_experts_is_cut_and_its_data_parallel_group_is_what_is_left():
    arch = describe(compose(["model=mixtral_8x7b"]).config["model"])
    load = Load(phase="training", sequence=64, order="one_f_one_b")
    whole, cut = (Parallel(gpus=64, tensor=2, pipeline=2, expert=4, expert_tensor=t, zero=1) for t in (1, 2))
    experts = 32 * 8 * 3 * 4096 * 14336
    one, two = (need(arch, parallel, load).stages[0] for parallel in (whole, cut))
    assert (whole.expert_data, cut.expert_data) == (8, 4)
    assert one["weights"] - two["weights"] == pytest.approx(2.0 * experts / 2 / 4 / 2)
    assert one["gradients"] - two["gradients"] == pytest.approx(4.0 * experts / 2 / 4 / 2)
    assert one["optimiser"] == pytest.approx(two["optimiser"]), "split over the GPUs that hold the same"


def test_columns_that_a_group_cannot_share_are_refused():
    with pytest.raises(InputError, match="expert_tensor=3: does not divide the 128 columns of an expert; nearest that does: 4"):
        folding.check_split(MODEL, 3)
    with pytest.raises(InputError, match=r"placement.slots=7: .*nearest that does: 8"):
        folding.leaders(7, 4, 2, 8)
