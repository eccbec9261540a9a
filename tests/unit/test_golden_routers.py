"""Vectors for routers from reference implementations, or by hand from their documented rule, on the same 8 tokens.

Run with torch 2.13 on a CPU: Megatron-LM d98e8a64, DeepSpeed edaa7221, Tutel ac0e51b9. Transcribed and run: DeepSeek-V3
9b4e978 inference/model.py, fairseq's auction, ReMoE, the load of noisy top-k. The rest follows by hand. Floats to 1e-5.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from clustersim.workload import losses, routers
from clustersim.workload.balancing import Seen, max_violation, proportional, sign
from clustersim.workload.routers.activation import activated
from clustersim.workload.routers.assignment import assigned_by_auction, assigned_exactly
from clustersim.workload.routers.batch import sinkhorn_scaled, soft_moe_mixing, taken_deep
from clustersim.workload.routers.variable import dual_beta

LOGITS = np.array([
    [2.0, 1.0, 0.0, -1.0], [1.5, 0.5, 0.2, -0.3], [3.0, 0.1, 1.0, 0.0], [0.2, 2.2, 0.1, 0.0],
    [1.0, 0.9, 0.8, 0.7], [2.5, -1.0, 0.5, 2.0], [0.0, 0.3, 1.7, 0.1], [1.2, 0.4, 0.6, 1.1],
])  # fmt: skip
TOP_2 = [[0, 1], [0, 1], [0, 2], [1, 0], [0, 1], [0, 3], [2, 1], [0, 3]]
ONCE = np.zeros(8, int)             # all tokens in one sequence

# Every vector about routing, and which test holds it. Those of placement (B), exchange (C), schedules (D), offload (E) and
# metrics (F) belong to other rooms.
TESTED = {
    "logits_8x4, softmax_8x4": "test_the_softmax",
    "top2_softmax_post": "test_top_2_with_softmax_after_and_before",
    "aux": "test_the_losses_of_the_8_tokens",
    "sinkhorn_megatron": "test_sinkhorn_is_megatrons",
    "quantile_balancing_megatron": "test_quantile_balancing_is_megatrons",
    "expert_choice_c2": "test_expert_choice",
    "BASE_balanced_top1_optimal": "test_base_exactly_and_by_auction",
    "softmoe_4tok_2slots": "test_soft_moe_mixes",
    "deepseek_v3_gate": "test_the_gate_of_deepseek_v3",
    "bias_update": "test_the_sign_update",
    "longcat_bias_update": "test_the_proportional_update_is_longcats",
    "top_p_0.7": "test_top_p",
    "remoe_relu(logits-1)": "test_remoe",
    "mod_capacity0.5": "test_mixture_of_depths",
    "hash_mod": "test_hashes",
    "gshard_random_second": "test_the_random_second_expert_of_gshard",
    "noisy_topk_load_prob": "test_the_chance_to_be_in_the_noisy_top_k",
    "node_limited_seed0": "test_group_limited_tokens_touch_four_groups",
    "deepseek_v2_losses, deepseek_v3_seq_loss": "test_the_losses_of_deepseek",
}
CAPACITY = (                        # of what is dropped once the experts are chosen
    "megatron_drop_probs", "drop_position_stable", "drop_choice_major", "drop_BPR", "deepspeed_top1", "deepspeed_top2",
    "deepspeed_topk_probs", "deepspeed_topk_position", "tutel_capacity", "tutel_top2", "tutel_top2_BPR", "switch_capacity",
    "pad_routing_map_mult4", "moepp_capacity",
)  # fmt: skip


@pytest.mark.parametrize("test", sorted(set(TESTED.values())))
def test_every_vector_about_routers_has_its_test(test):
    assert callable(getattr(sys.modules[__name__], test))
    assert not set(TESTED) & set(CAPACITY)


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def real(ids):
    """Each token's experts, without the -1."""
    return [row[row >= 0].tolist() for row in ids]


def test_the_softmax():
    close(activated(LOGITS, "softmax")[[0, 4, 7]], [
        [0.643914, 0.236883, 0.087144, 0.032059], [0.288651, 0.261183, 0.236328, 0.213838],
        [0.344474, 0.154782, 0.189051, 0.311693],
    ])  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_top_2_with_softmax_after_and_before(dtype):
    """Megatron-LM: by default the softmax over the chosen, with moe_router_pre_softmax over all; renormalised they agree."""
    after = [
        [0.731059, 0.268941], [0.731059, 0.268941], [0.880797, 0.119203], [0.880797, 0.119203],
        [0.524979, 0.475021], [0.622459, 0.377541], [0.802184, 0.197816], [0.524979, 0.475021],
    ]  # fmt: skip
    before = [
        [0.643914, 0.236883], [0.553799, 0.203731], [0.806357, 0.109129], [0.730676, 0.098886],
        [0.288651, 0.261183], [0.564314, 0.342274], [0.613054, 0.151177], [0.344474, 0.311693],
    ]  # fmt: skip
    for options, expected in (
        ({}, after), ({"softmax": "before"}, before), ({"softmax": "before", "renormalise": True}, after)
    ):  # fmt: skip
        ids, weights = routers.top_k(LOGITS.astype(dtype), k=2, **options)
        assert ids.tolist() == TOP_2
        close(weights, expected)
    assert np.bincount(np.ravel(TOP_2)).tolist() == [7, 5, 2, 2]


V3_LOGITS = np.array([
    [0.5, 0.4, 2.0, -3.0, 0.9, 0.8, -1.0, 0.1], [1.5, -2.0, 0.3, 0.2, -0.5, 1.4, 1.3, 1.2],
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
])  # fmt: skip
V3_BIAS = np.array([0.0, 0.0, -0.3, 0.0, 0.0, 0.0, 0.1, 0.0])
V3 = {"k": 2, "n_groups": 4, "best_groups": 2, "scale": 2.5}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gate_of_deepseek_v3(dtype):
    """Sum of the top two plus bias (its inference code with a bias), the maximum without, no groups; Megatron-LM's sum of the
    best k / groups, which is the maximum here and so takes experts 0 and 6 for the second token."""
    logits = V3_LOGITS.astype(dtype)
    for options, experts, weights in (
        ({"bias": V3_BIAS}, [[4, 5], [6, 5], [6, 7]], [[1.268715, 1.231285], [1.237131, 1.262869], [1.228563, 1.271437]]),
        ({"group_score": "max"}, [[2, 4], [0, 5], [7, 6]], [[1.383381, 1.116619], [1.261877, 1.238123], [1.271437, 1.228563]]),
        ({"bias": V3_BIAS, "n_groups": 1, "best_groups": 1}, [[4, 5], [6, 0], [6, 7]], None),
        ({"bias": V3_BIAS, "group_score": "share"}, [[4, 5], [6, 0], [6, 7]], None),
    ):  # fmt: skip
        ids, found = routers.group_limited(logits, **V3 | options)
        assert ids.tolist() == experts
        if weights:
            close(found, weights)


def test_group_limited_tokens_touch_four_groups():
    """512 tokens of uniform scores, seed 0, 64 experts in 8 groups, top 8: 3.982422 of at most 4 groups, else 5.441406."""
    scores = np.random.default_rng(0).random((512, 64))
    limited, _ = routers.group_limited(scores, k=8, score="none")
    free, _ = routers.top_k(scores, k=8)
    close([np.mean([len(set(row)) for row in ids // 8]) for ids in (limited, free)], [3.982422, 5.441406])
    assert limited[0].tolist() == [26, 27, 9, 38, 5, 37, 12, 10]
    assert free[0].tolist() == [26, 27, 9, 38, 5, 45, 37, 52]
    assert np.bincount(limited.ravel()).max() == 79


def test_masking_with_zero_lets_an_expert_of_another_group_in():
    """Expert 0 leads group 0, the other group is masked. With a bias of -1 expert 1 has -0.1, less than 0: with the zero of
    older code the masked expert 2 comes before it, with minus infinity it does not."""
    scores, bias = np.array([[2.0, 0.9, 0.3, 0.2]]), np.array([-1.0, -1.0, -1.0, -1.0])
    options = {"k": 2, "score": "none", "n_groups": 2, "best_groups": 1, "bias": bias}
    assert routers.group_limited(scores, **options)[0].tolist() == [[0, 1]]
    assert routers.group_limited(scores, **options, zero_others=True)[0].tolist() == [[0, 2]]


def test_the_random_second_expert_of_gshard():
    """FastMoE keeps it where 2 g2 >= u; Mesh-TensorFlow with probability min(1, g2 / 0.2)."""
    u = np.array([0.9, 0.1, 0.5, 0.2, 0.99, 0.6, 0.3, 0.8])
    drawn = SimpleNamespace(random=lambda n: u)
    ids, weights = routers.gshard(LOGITS, rng=drawn)
    assert (ids[:, 1] >= 0).tolist() == [False, True, False, True, False, True, True, True]
    assert ids[:, 0].tolist() == [row[0] for row in TOP_2]
    second = np.array([0.268941, 0.268941, 0.119203, 0.119203, 0.475021, 0.377541, 0.197816, 0.475021])
    close(weights[:, 1], np.where(ids[:, 1] >= 0, second, 0))
    chance = [1.0, 1.0, 0.596015, 0.596015, 1.0, 1.0, 0.989081, 1.0]
    for edge in (-1e-4, 1e-4):
        near = SimpleNamespace(random=lambda n, edge=edge: np.clip(np.array(chance) + edge, 0, 1 - 1e-9))
        ids, _ = routers.gshard(LOGITS, second="threshold", rng=near)
        assert (ids[:, 1] >= 0).tolist() == [edge < 0 or c == 1 for c in chance]


def test_sinkhorn_is_megatrons():
    scaled = sinkhorn_scaled(LOGITS)
    close(scaled[[0, 3, 6]], [
        [0.05271, 0.044058, 0.019428, 0.008803], [0.005435, 0.091252, 0.013394, 0.014927],
        [0.005511, 0.016903, 0.08216, 0.020431],
    ])  # fmt: skip
    close(scaled.sum(axis=1), [0.124998, 0.124999, 0.124992, 0.125009, 0.125002, 0.124995, 0.125004, 0.125])
    close(scaled.sum(axis=0), 0.25)
    ids, weights = routers.sinkhorn(LOGITS, k=1)
    assert ids.ravel().tolist() == [0, 0, 0, 1, 3, 3, 2, 3]
    close(weights.ravel(), [0.880797, 0.817574, 0.952574, 0.90025, 0.668188, 0.880797, 0.845535, 0.75026])


def test_quantile_balancing_is_megatrons():
    """beta is unique, the choices are not: tokens 3, 4, 6 and 7 have equal scores less beta, and torch took other ones of
    these than the first. So its choices must be as good, and theirs are 4 to each expert."""
    beta = dual_beta(LOGITS, 2, np.zeros(4))
    close(beta, [0.6, 0.1, 0.0, -0.1])
    torch = np.array([[0, 1], [0, 1], [0, 2], [1, 3], [1, 2], [3, 0], [2, 3], [3, 2]])
    ids, _ = routers.quantile_balanced(LOGITS, k=2, score="none")
    ours, theirs = (np.take_along_axis(LOGITS - beta, one, axis=1) for one in (ids, torch))
    close(ours, theirs)
    assert (ids == torch)[[0, 1, 2, 5]].all()
    assert np.bincount(torch.ravel()).tolist() == [4, 4, 4, 4]


def test_expert_choice():
    """Capacity 2: each of 4 experts takes 4 of 8 tokens."""
    ids, weights = routers.expert_choice(LOGITS, k=2)
    tokens, slots = np.nonzero(ids >= 0)
    takers = []
    for expert in range(4):
        mine = ids[tokens, slots] == expert
        order = np.argsort(-weights[tokens, slots][mine], kind="stable")
        takers.append(tokens[mine][order].tolist())
        if expert == 3:
            close(weights[tokens, slots][mine][order], [0.342274, 0.311693, 0.213838, 0.123774])
    assert takers == [[2, 0, 5, 1], [3, 4, 0, 1], [6, 4, 7, 1], [5, 7, 4, 6]]
    assert (ids >= 0).sum(axis=1).tolist() == [2, 3, 1, 1, 3, 2, 2, 2]


def test_base_exactly_and_by_auction():
    """Sum 13.3 both ways, 15.1 unbalanced. fairseq's auction gives experts the tokens (0, 2), (1, 3), (4, 6), (5, 7)."""
    for assigned in (assigned_exactly(LOGITS), assigned_by_auction(LOGITS)):
        assert assigned.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
        close(LOGITS[np.arange(8), assigned].sum(), 13.3)
    ids, weights = routers.base(LOGITS)
    close(weights, 1 / (1 + np.exp(-np.take_along_axis(LOGITS, ids, axis=1))))
    greedy, _ = routers.base(LOGITS, method="greedy")
    close(np.take_along_axis(LOGITS, greedy, axis=1).sum(), 15.1)


def test_soft_moe_mixes():
    dispatch, combine = soft_moe_mixing(LOGITS[:4, :2])
    close(dispatch, [[0.222712, 0.187504], [0.135081, 0.113727], [0.605393, 0.076233], [0.036814, 0.622535]])
    close(combine, [[0.731059, 0.268941], [0.731059, 0.268941], [0.947846, 0.052154], [0.119203, 0.880797]])


def test_the_sign_update():
    """Loads 10, 2, 4, 4, 0, 4, mean 4, rate 0.001; MaxVio 10 / 4 - 1."""
    seen = Seen(counts=np.array([10, 2, 4, 4, 0, 4]), tokens=24, k=1, number=0, values=lambda: LOGITS)
    close(sign(np.zeros(6), seen, rate=1e-3), [-0.001, 0.001, 0.0, 0.0, 0.001, 0.0])
    assert max_violation(seen.counts) == pytest.approx(1.5)


def test_the_proportional_update_is_longcats():
    """4 choices of which 3 should be one of 6 real experts, 100 tokens; the two zero-computation experts keep their bias."""
    seen = Seen(counts=np.array([60, 50, 50, 50, 40, 30]), tokens=100, k=4, number=0, values=lambda: LOGITS)
    moved = proportional(np.array([0, 0, 0, 0, 0, 0, 7.0, 8.0]), seen, rate=0.1, active=3)
    close(moved, [-0.0025, 0.0, 0.0, 0.0, 0.0025, 0.005, 7.0, 8.0])


def test_top_p():
    assert real(routers.top_p(LOGITS, p=0.7)[0]) == [[0, 1], [0, 1], [0], [1], [0, 1, 2], [0, 3], [2, 1], [0, 3, 2]]


def test_remoe():
    """relu(scores - 1): 9 of 32 active, less than the one in four that are aimed at, so the coefficient rises."""
    ids, weights = routers.remoe(LOGITS, k=1, shift=1.0)
    active = (ids >= 0).sum(axis=1)
    assert active.tolist() == [1, 1, 1, 1, 0, 2, 1, 2]
    close(weights[5], [1.5, 1.0])
    assert 1 - active.mean() / 4 == 0.71875
    assert losses.relu_coefficient(1e-8, active.mean(), 1, 4) == pytest.approx(1.2e-8)
    assert losses.relu_coefficient(1e-8, 0.9, 1, 4) == pytest.approx(1e-8 / 1.2)


def test_mixture_of_depths():
    assert np.flatnonzero(taken_deep(LOGITS[:, 0], ONCE, 0.5)).tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize("table", ["modulo", "knuth"])
def test_hashes(table):
    """For 4 experts both take the two low bits, as the multiplier is 1 modulo 4."""
    ids, _ = routers.hash_table(np.zeros((8, 4)), k=1, table=table, token_ids=np.array([17, 4, 17, 255, 1023, 8, 9, 4]))
    assert ids.ravel().tolist() == [1, 0, 1, 3, 3, 0, 1, 0]


def test_the_chance_to_be_in_the_noisy_top_k():
    clean, noisy = np.array([[1.0, 2.0, 0.5]]), np.array([[1.2, 1.9, 0.7]])
    close(losses.noisy_chances(clean, noisy, 1.0, 1), [[0.18406, 0.788145, 0.080757]])


def test_the_losses_of_the_8_tokens():
    """Megatron-LM's (top 2, top 1), GShard's and Tutel's (first choice), sequences of 4, micro-batches of 4, z, importance."""
    ids, halves = np.array(TOP_2), np.repeat([0, 1], 4)
    close(losses.switch_loss(LOGITS, ids), 1.201921)
    close(losses.switch_loss(LOGITS, ids[:, :1]), 1.489104)
    close(losses.gshard_loss(LOGITS, ids), 1.489104)
    close(losses.sequence_loss(LOGITS, ids, halves), 1.293132)
    close(losses.global_batch_loss(LOGITS, ids, halves), 1.201921)
    close(losses.z_loss(LOGITS), 6.422134)
    close(losses.importance_loss(LOGITS), 0.234945)


def test_the_losses_of_deepseek():
    """V2 with experts 0, 1 and 2, 3 on a device each and two devices per token; V3 on one sequence, top 2."""
    close(losses.deepseek_v2_losses(LOGITS, np.array(TOP_2), np.array([0, 0, 1, 1]), 2), [1.201921, 1.151529, 0.825764])
    close(losses.deepseek_v3_sequence_loss(LOGITS, ONCE, 2), 1.050823)
