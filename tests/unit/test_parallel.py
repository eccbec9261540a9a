"""Parallel groups: their sizes, their ranks, and what is said of sizes that do not fit."""

import numpy as np
import pytest

from clustersim.parallel import ATTENTION, EXPERTS, Parallel, parallel_from
from clustersim.types import InputError


def test_tensor_groups_are_neighbours_and_stages_are_far_apart():
    p = Parallel(gpus=16, tensor=2, pipeline=2, expert=8)
    assert p.data == 4
    assert p.expert_data == 1
    assert p.groups("tensor").tolist()[:2] == [[0, 1], [2, 3]]
    assert p.groups("data").tolist()[0] == [0, 2, 4, 6]
    assert p.groups("pipeline").tolist()[0] == [0, 8]
    assert p.groups("expert").tolist() == [list(range(8)), list(range(8, 16))]


@pytest.mark.parametrize("name", [*ATTENTION, *EXPERTS])
def test_every_rank_is_in_one_group_of_each_kind(name):
    p = Parallel(gpus=96, tensor=2, context=2, pipeline=3, expert=4, expert_tensor=2)
    assert np.sort(p.groups(name).ravel()).tolist() == list(range(96))


def test_deepseek_v3_s_published_layout():
    # arXiv 2412.19437 §3.2: 2,048 GPUs, 16 stages, experts over 64 GPUs of 8 nodes, no tensor parallelism
    p = parallel_from({"pipeline": 16, "expert": 64, "zero": 1}, 2048)
    assert (p.data, p.expert_data, p.stage_gpus) == (128, 2, 128)
    assert p.groups("expert")[0].tolist() == list(range(64))
    assert p.groups("expert_data")[0].tolist() == [0, 64]


def test_null_spreads_experts_over_as_many_gpus_as_share_them_evenly():
    # 64 GPUs of a stage: 256 experts are 4 on each, 32 are one on each of 32, 24 are 3 on each of 8
    assert [parallel_from({}, 64, n).expert for n in (256, 32, 24)] == [64, 32, 8]
    assert parallel_from({}, 64).expert == 64


@pytest.mark.parametrize(("config", "said"), [
    ({"tensor": 3}, "tensor 3 x context 1 x pipeline 1 = 3 does not divide 64 GPUs; nearest that does: parallel.tensor=4"),
    ({"expert": 48}, "expert 48 x pipeline 1 = 48 does not divide 64 GPUs; nearest that does: parallel.expert=64"),
    ({"pipelin": 2}, "parallel.pipelin: there is no such key; did you mean pipeline?"),
    ({"tensor": 0}, "parallel.tensor=0: must be a whole number from 1 up"),
    ({"zero": 4}, "parallel.zero=4: must be 0, 1, 2 or 3"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_refused_with_one_that_can(config, said):
    with pytest.raises(InputError) as caught:
        parallel_from(config, 64)
    assert said in str(caught.value)
