"""Cases of training steps: what a case leaves out, other names of keys, and Megatron's own tables as rows."""

import json
from importlib.resources import files

import pytest

from clustersim.types import InputError
from clustersim.validation import training_steps
from clustersim.validation.training_steps import recipe, training_step

SMALL = {
    "phase": "training", "model": "llama_3_2_1b", "gpu": "h100", "gpus": 8, "sequence": 512, "global_batch": 16,
    "metric": "tokens/s/GPU", "dtype": "bf16",
}  # fmt: skip
MOE = {"model": "qwen3_30b_a3b", "gpu": "b200", "dtype": "mxfp8"}


def test_short_names_mean_the_long_ones():
    long = {"tensor": 2, "pipeline": 2, "micro_batch": 2, "order": "one_f_one_b"}
    short = {"tp": 2, "pp": 2, "mbs": 2, "schedule": "one_f_one_b"}
    assert training_step(SMALL | long) == training_step(SMALL | short)


def test_nodes_are_the_machine_s_and_divide_the_gpus(monkeypatch):
    asked = []
    monkeypatch.setattr(training_steps, "_simulated", lambda overrides, *more: asked.append(overrides) or 1.0)
    for gpu, gpus, nodes, inside in (("h100", 16, 2, 8), ("gb200", 256, 4, 64), ("gb200", 72, 1, 72), ("b200", 4, 1, 4)):
        training_step(SMALL | {"gpu": gpu, "gpus": gpus})
        assert {f"topology.nodes={nodes}", f"topology.gpus_per_node={inside}"} <= set(asked[-1])
    training_step(SMALL | {"gpu": "gb200", "gpus": 256, "gpus_per_node": 72})
    assert {"topology.nodes=4", "topology.gpus_per_node=64"} <= set(asked[-1]), "of a whole rack, too, what shares out evenly"


@pytest.mark.parametrize(("more", "said"), [
    ({"virtual": 4}, {"order": "interleaved", "zero": 1, "cuda_graphs": "none"}),
    ({"virtual": 4, "overlap": True}, {"order": "combined"}),
    ({"tensor": 8, "dtype": "fp8"}, {"tensor_overlap": True}),
    ({"tensor": 8}, {"tensor_overlap": None}),
    ({"tensor": 8, "dtype": "fp8", "tensor_overlap": False}, {"tensor_overlap": False}),
    (MOE | {"expert": 8}, {"exchange": "nccl_alltoall"}),
    (MOE | {"expert": 32}, {"exchange": "deepep_normal"}),
    (MOE | {"gpu": "gb200", "expert": 32}, {"exchange": "hybrid_ep", "cuda_graphs": "attention"}),
    (MOE | {"expert": 32, "exchange": "direct"}, {"exchange": "direct"}),
    (MOE | {"framework": "null"}, {"exchange": None, "zero": None, "cuda_graphs": None}),
])  # fmt: skip
def test_what_a_case_leaves_out_is_as_the_recipes_have_it(more, said):
    full = recipe(SMALL | more, 64 if more.get("gpu") == "gb200" else 8)
    assert {key: full.get(key) for key in said} == said


def test_fp8_is_what_the_framework_means_by_it():
    graphed = SMALL | {"cuda_graphs": "all"}
    fp8, tensor, blocks = (training_step(graphed | {"dtype": name}) for name in ("fp8", "fp8_tensor", "fp8_block128"))
    assert fp8 == tensor > blocks
    assert training_step(SMALL | {"dtype": "fp8", "framework": "null"}) == training_step(
        SMALL | {"dtype": "fp8_block128", "framework": "null"}
    )
    with pytest.raises(InputError, match=r"case.dtype=fp9: must be one of .*; did you mean fp8\?"):
        training_step(SMALL | {"dtype": "fp9"})


def test_every_row_of_megatron_s_tables_is_in_the_vocabulary(monkeypatch):
    monkeypatch.setattr(training_steps, "_simulated", lambda *given: 1.0)
    rows = [json.loads(line) for line in (files("clustersim.validation") / "data" / "megatron.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) > 20
    for row in rows:
        assert training_step({key: value for key, value in row["case"].items() if key != "what"}) == 1.0
        assert "github:" in row["source"]
