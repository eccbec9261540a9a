"""What a pass does besides its experts: every model of the catalogue plays, and dense ones take what their FLOPs say."""

import dataclasses

import numpy as np
import pytest

from clustersim import load_cluster, simulate
from clustersim.architecture import played
from clustersim.engine import timing
from clustersim.engine.own_times import OwnTimes, Shared, around_experts, sequence_ends
from clustersim.parts import Attention, Dense, Moe
from clustersim.places import group_folder
from clustersim.stacks import Encoder, Retrieval, Stack
from clustersim.types import InputError, Workload
from clustersim.workload.source import uniform_blocks

MODELS = sorted(path.stem for path in group_folder("model").glob("*.yaml"))
SMALL = [
    "topology=ideal_rail", "topology.nodes=1", "network=bound", "workload.tokens_per_gpu=8", "trace=balanced", "trace.sequence=4",
    "memory=ignore",
]
ONE_GPU = ["topology=ideal_rail", "topology.nodes=1", "topology.gpus_per_node=1", "compute=roofline", "network=bound"]


def workload(n_gpus, tokens, sequence):
    source, index, context = uniform_blocks(n_gpus, tokens, sequence)
    return Workload(source=source, index=index, context=context, choose=lambda layer: None)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_catalogue_plays_a_forward_pass(name):
    result = simulate([*SMALL, f"model={name}", "exchange=direct"])
    gpus, layers, model = result.tables["gpus"], result.tables["layers"], result.run.model
    assert layers["layer"].to_list() == list(range(model.n_layers))
    assert [i for i, used in enumerate(layers["imbalance"].is_not_null()) if used] == list(model.moe_layers)
    parts = gpus.select("attention_s", "dispatch_s", "expert_s", "combine_s", "other_s", "idle_s").sum_horizontal()
    whole = gpus.with_columns(parts=parts).group_by("gpu").sum()["parts"].to_numpy()
    np.testing.assert_allclose(whole, result.summary["step_s"], rtol=1e-9)
    assert (gpus["attention_s"] > 0).all(), "every layer mixes"
    assert result.tables["experts"].height == len(model.moe_layers) * model.n_experts
    assert (result.summary["over_bound"] is None) == (not model.moe_layers)


def test_one_gpu_without_experts_takes_what_the_roofline_says():
    """Llama 3.2 1B, 4 sequences of 512: each layer is its larger side; the table is read once more, for 4 last tokens.

    Layers are bound by arithmetic at 2,048 tokens: two FLOPs per weight, 4 x 32 x 64 per pair of tokens.
    """
    result = simulate([*ONE_GPU, "model=llama_3_2_1b", "trace=balanced", "trace.sequence=512", "workload.tokens_per_gpu=2048"])
    gpu, tokens, pairs = load_cluster("ideal_rail").gpu, 2048, 4 * 512 * 513 / 2
    attention, ffn = 2048 * 64 * (2 * 32 + 2 * 8), 3 * 2048 * 8192
    layer = (2 * attention * tokens + 4 * 32 * 64 * pairs) / gpu.bf16_flops + 2 * ffn * tokens / gpu.bf16_flops
    head = (128256 * 2048 * 2.0 + 4 * (128256 + 2048) * 2.0) / gpu.memory_bandwidth
    assert result.summary["step_s"] == pytest.approx(16 * layer + head, rel=1e-9)
    assert result.summary["exposed_comm_s"] == 0


def test_what_has_no_meaning_without_experts_is_refused():
    for key in ("router=top_k", "capacity.factor=1.0", "causes=true", "decide=periodic"):
        with pytest.raises(InputError, match=rf"^{key}: model=llama_3_2_1b has no routed experts"):
            simulate([*SMALL, "model=llama_3_2_1b", key])
    note = simulate([*SMALL, "model=llama_3_2_1b"]).notes
    assert note[0] == "llama_3_2_1b has no routed experts: trace, placement and exchange say nothing but how long sequences are"


def test_a_layer_is_cut_at_its_experts():
    look, ffn, moe = Attention(heads=1, kv_heads=1, head_dim=1), Dense(size=1), Moe(experts=2, top_k=1, size=1)
    assert around_experts((look, ffn)) == ([look], [ffn])
    before, after = around_experts((look, moe, ffn))
    assert before == [look, moe]
    assert isinstance(after[0], Shared)
    assert after[1:] == [ffn]


def test_the_last_token_of_a_sequence_makes_the_next():
    """Sequences of 4 in batches of 10: ends after 4 and 8 and where the batch cuts the third. Decoding: every token."""
    assert sequence_ends(workload(3, 10, 4), 3).tolist() == [3, 3, 3]
    alone = Workload(
        source=np.repeat([0, 2], 3), index=np.tile([0, 1, 2], 2), context=np.array([7, 7, 9, 1, 5, 9]), choose=lambda layer: None
    )
    assert sequence_ends(alone, 3).tolist() == [3, 0, 3]


def test_encoders_and_retrieval_come_before_the_first_layer():
    llama = simulate([*SMALL, "model=llama_3_2_1b"]).run.model
    gpu = dataclasses.replace(load_cluster("ideal_rail").gpu, memory_bandwidth=1e30)
    stack = Stack(hidden=64, layers=((Attention(heads=4, kv_heads=4, head_dim=16), Dense(size=128, matrices=2)),) * 3)
    seen = dataclasses.replace(llama, encoders=(("eyes", Encoder(stack=stack, tokens=100, outputs=25, projection=64 * 2048)),))
    times = OwnTimes(timing.roofline(seen, gpu), seen, workload(2, 8, 4), 2, inputs=3)
    flops = 3 * (2 * stack.layers[0][0].params(64) + 2 * 2 * 64 * 128 + 4 * 64 * 100) * 600 + 2 * 64 * 2048 * 6 * 25
    np.testing.assert_allclose(times.encoders_s, flops / gpu.bf16_flops, rtol=1e-12)
    plain = OwnTimes(timing.roofline(llama, gpu), llama, workload(2, 8, 4), 2)
    np.testing.assert_allclose(times.layer(0)[0] - plain.layer(0)[0], times.encoders_s, rtol=1e-9)
    found = dataclasses.replace(llama, retrieval=Retrieval(latency_s=0.01, nbytes=1e6, tokens=50))
    asked = OwnTimes(timing.roofline(found, gpu), found, workload(2, 8, 4), 2, inbound=1e9)
    np.testing.assert_allclose(asked.retrieval_s, 0.01 + 2 * 1e6 / 1e9, rtol=1e-12)
    more = 4 * 32 * 64 * 8 * 50 / gpu.bf16_flops
    np.testing.assert_allclose(asked.layer(1)[0] - plain.layer(1)[0], more, rtol=1e-9)
    with pytest.raises(InputError, match=r"^workload\.encoder_inputs: model=llama_3_2_1b has no encoder"):
        OwnTimes(timing.none(llama, gpu), llama, workload(2, 8, 4), 2, inputs=1)


def test_every_dense_model_s_config_is_played_as_it_is_counted():
    import yaml

    from clustersim.architecture import describe

    for name in MODELS:
        config = yaml.safe_load((group_folder("model") / f"{name}.yaml").read_text())
        model, counted = played(config), describe(config)
        assert (model.total_params, model.active_params) == (counted.total_params, counted.active_params), name
