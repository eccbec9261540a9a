"""Models: shapes that cannot be are refused; parameters, bytes and FLOPs are those of the published models."""

from pathlib import Path

import pytest
import yaml

from clustersim.architecture import played
from clustersim.model import Attention, Model, model_from
from clustersim.types import InputError

CONF = Path(__file__).parents[2] / "clustersim" / "conf" / "model"

GQA = {"kind": "gqa", "heads": 8, "kv_heads": 2, "head_dim": 16}
MLA = {
    "kind": "mla", "heads": 8, "q_lora_rank": 24, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
}  # fmt: skip
SMALL = {
    "name": "small", "n_layers": 4, "n_experts": 16, "top_k": 2, "hidden": 64, "expert_ffn": 32, "vocab": 100, "attention": GQA,
}  # fmt: skip


def load(name):
    return model_from(yaml.safe_load((CONF / f"{name}.yaml").read_text()))


def test_exact_counts_of_checkpoints():
    """Sums of the checkpoints' own tensors, written out from their shapes; norms and biases left out."""
    mixtral = load("mixtral_8x7b")
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 3 * 4096 * 14336 + 8 * 4096
    assert mixtral.total_params == 2 * 32000 * 4096 + 32 * layer
    assert mixtral.total_params + (2 * 32 + 1) * 4096 == 46_702_792_704      # with its norms, what the checkpoint holds
    v3 = load("deepseek_v3")
    assert v3.attention.params(v3.hidden) == 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    assert v3.expert_params == 44_040_192


def test_token_bytes_on_the_wire():
    assert load("deepseek_v3").dispatch_token_bytes == 7392      # DeepEP: 7168 in FP8 and 56 scales of 4 bytes
    assert load("deepseek_v3").combine_token_bytes == 14336
    assert load("gpt_oss_20b").dispatch_token_bytes == load("gpt_oss_20b").combine_token_bytes == 5760


def test_tied_embeddings_are_one_table():
    model, tied = model_from(SMALL), model_from(SMALL | {"tied_embeddings": True})
    assert model.total_params - tied.total_params == model.embedding_params == 6400


def test_dense_layers_and_shared_experts_count_for_every_token():
    plain = model_from(SMALL)
    model = model_from(SMALL | {"n_dense_layers": 1, "dense_ffn": 128, "n_shared_experts": 2, "shared_ffn": 64})
    assert (plain.n_moe_layers, model.n_moe_layers) == (4, 3)
    assert model.shared_params == 3 * 64 * 64
    expected = plain.active_params - 2 * plain.expert_params - 64 * 16 + 3 * 64 * 128 + 3 * model.shared_params
    assert model.active_params == expected
    assert model.total_params - model.active_params == 3 * 14 * model.expert_params


def test_attention_of_both_kinds_written_out():
    gqa, mla, direct = Attention(**GQA), Attention(**MLA), Attention(**(MLA | {"q_lora_rank": None}))
    assert gqa.params(64) == 64 * (128 + 32 + 32) + 128 * 64
    kv = 64 * (32 + 8) + 32 * 8 * (16 + 12)
    assert mla.params(64) == 64 * 24 + 24 * 8 * 24 + kv + 8 * 12 * 64
    assert direct.params(64) == 64 * 8 * 24 + kv + 8 * 12 * 64


def test_gpt_oss_looks_back_128_tokens_in_every_other_layer():
    layers = load("gpt_oss_20b").layers
    assert [attention.window for attention, _ in layers[:4]] == [128, None, 128, None]
    assert not any(attention.window for attention, _ in load("mixtral_8x7b").layers)
    assert all(Attention(**(GQA | {"sliding_window": 4})).windowed(layer) for layer in range(4))


def test_the_long_form_says_which_layers_have_experts():
    """Jamba 1.5: every other layer from the second on, attention in the fifth of eight; Llama 3 has none at all."""
    jamba, llama = (played(yaml.safe_load((CONF / f"{name}.yaml").read_text())) for name in ("jamba_1_5_large", "llama_3_1_405b"))
    assert jamba.moe_layers == tuple(range(1, 72, 2))
    assert [type(layer[0]).__name__ for layer in jamba.layers[:8]] == ["Mamba"] * 4 + ["Attention"] + ["Mamba"] * 3
    assert (jamba.n_experts, jamba.top_k, jamba.expert_params) == (16, 2, 3 * 8192 * 24576)
    assert (llama.n_experts, llama.top_k, llama.moe_layers) == (0, 0, ())


@pytest.mark.parametrize(("layers", "said"), [
    (["look one", "look two"], "its layers mix experts of 2 shapes"), (["look one one"], "layer 0 has two mixtures of experts"),
])  # fmt: skip
def test_what_one_placement_cannot_hold_is_refused(layers, said):
    parts = {
        "look": {"kind": "attention", "heads": 8, "kv_heads": 2, "head_dim": 16},
        "one": {"kind": "moe", "experts": 4, "top_k": 1, "size": 8}, "two": {"kind": "moe", "experts": 8, "top_k": 1, "size": 8},
    }  # fmt: skip
    used = {name: part for name, part in parts.items() if name in " ".join(layers)}
    with pytest.raises(InputError, match=said):
        played({"name": "x", "hidden": 64, "vocab": 10, "parts": used, "layers": [{"times": 1, "of": layers}]})


REFUSED = [
    ({"top_k": 17}, "model.top_k = 17: asks for more experts than n_experts = 16"),
    ({"n_layers": 0}, "model.n_layers = 0: must be a whole number above 0"),
    ({"hidden": 64.0}, "model.hidden = 64.0"),
    ({"hidden": True}, "model.hidden = True"),
    ({"n_experts": "16"}, "model.n_experts = '16'"),
    ({"n_dense_layers": 4, "dense_ffn": 8}, "model.n_dense_layers = 4: leaves no MoE layer of n_layers = 4"),
    ({"n_dense_layers": -1}, "model.n_dense_layers = -1"),
    ({"n_dense_layers": 1}, "model.dense_ffn = 0"),
    ({"n_shared_experts": 1}, "model.shared_ffn = 0"),
    ({"shared_ffn": 8}, "model.shared_ffn = 8"),
    ({"dispatch_bytes": 0}, "model.dispatch_bytes = 0"),
    ({"weight_bytes": float("nan")}, "model.weight_bytes = nan"),
    ({"combine_bytes": "2"}, "model.combine_bytes = '2'"),
    ({"tied_embeddings": "no"}, "model.tied_embeddings = 'no'"),
    ({"gemm": "fp16"}, "model.gemm = 'fp16': must be bf16, fp8 or fp4"),
    ({"topk": 2}, "model.topk: there is no such key"),
    ({"attention": "gqa"}, "model.attention = 'gqa'"),
    ({"attention": GQA | {"kind": "gqaa"}}, "did you mean gqa?"),
    ({"attention": GQA | {"kv_heads": 3}}, "model.attention.kv_heads = 3: must divide heads = 8"),
    ({"attention": GQA | {"head_dim": None}}, "model.attention.head_dim = None"),
    ({"attention": GQA | {"heads": -1}}, "model.attention.heads = -1"),
    ({"attention": GQA | {"v_head_dim": 8}}, "model.attention.v_head_dim = 8: belongs to kind mla, not gqa"),
    ({"attention": GQA | {"full_every": 2}}, "model.attention.full_every = 2: needs sliding_window"),
    ({"attention": GQA | {"sliding_window": 0}}, "model.attention.sliding_window = 0"),
    ({"attention": GQA | {"window": 8}}, "model.attention.window: there is no such key"),
    ({"attention": MLA | {"kv_lora_rank": None}}, "model.attention.kv_lora_rank = None"),
    ({"attention": MLA | {"sliding_window": 8}}, "model.attention.sliding_window = 8: belongs to kind gqa, not mla"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_a_model_that_cannot_be_is_refused_in_one_line_that_names_the_key(change, message):
    with pytest.raises(InputError) as refusal:
        model_from(SMALL | change)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["name", "hidden", "attention"])
def test_a_missing_key_is_named(key):
    with pytest.raises(InputError, match=rf"model\.{key}: is missing"):
        model_from({name: value for name, value in SMALL.items() if name != key})


def test_a_model_is_a_value():
    assert model_from(SMALL) == model_from(SMALL)
    assert isinstance(hash(model_from(SMALL)), int)
    with pytest.raises(AttributeError):
        model_from(SMALL).hidden = 1
    assert isinstance(model_from(SMALL), Model)
