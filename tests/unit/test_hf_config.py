"""Hugging Face configurations become the models of the catalogue; what cannot be converted says so."""

import json
import re
from pathlib import Path

import pytest
import yaml

from clustersim.architecture import describe
from clustersim.cli import main
from clustersim.config import compose
from clustersim.hf_config import FAMILIES, model_from_hf_config
from clustersim.model import model_from
from clustersim.types import InputError

CONF = Path(__file__).parents[2] / "clustersim" / "conf" / "model"
PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
LLAMA = {"model_type": "llama", "vocab_size": 128256}
MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
OSS = {
    "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_experts_per_tok": 4, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088, "sliding_window": 128,
    "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
ALTERNATE = ["sliding_attention", "full_attention"]
DEEPSEEK = {
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
    "first_k_dense_replace": 1, "hidden_size": 2048, "intermediate_size": 10944, "vocab_size": 102400, "num_attention_heads": 16,
    "norm_topk_prob": False, "scoring_func": "softmax",
}  # fmt: skip
V3 = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "first_k_dense_replace": 3, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "moe_layer_freq": 1, "hidden_size": 7168,
    "intermediate_size": 18432, "vocab_size": 129280, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    **MLA, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "quantization_config": FP8,
}  # fmt: skip

# The shapes that checkpoints publish as config.json; keys that say nothing about shapes left out.
CHECKPOINTS = {
    "llama_3_1_405b": LLAMA | {
        "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
        "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "llama_3_2_1b": LLAMA | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    },
    "qwen3_4b": {
        "model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True, "sliding_window": None,
    },
    "smollm3_3b": {
        "model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128256, "tie_word_embeddings": True,
        "use_sliding_window": False, "sliding_window": 4096,
    },
    "gpt3_175b": {
        "model_type": "gpt2", "n_embd": 12288, "n_head": 96, "n_layer": 96, "n_positions": 2048, "n_inner": None,
        "vocab_size": 50257,
    },
    "mixtral_8x7b": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": 32000, "sliding_window": None, "tie_word_embeddings": False,
    },
    "deepseek_moe_16b": DEEPSEEK | {"model_type": "deepseek", "num_hidden_layers": 28, "num_key_value_heads": 16},
    "deepseek_v2_lite": DEEPSEEK | MLA | {
        "model_type": "deepseek_v2", "num_hidden_layers": 27, "num_key_value_heads": 16, "q_lora_rank": None, "n_group": 1,
        "topk_group": 1, "topk_method": "greedy", "routed_scaling_factor": 1.0,
    },
    "deepseek_v2": DEEPSEEK | MLA | {
        "model_type": "deepseek_v2", "num_hidden_layers": 60, "hidden_size": 5120, "intermediate_size": 12288,
        "moe_intermediate_size": 1536, "n_routed_experts": 160, "num_attention_heads": 128, "q_lora_rank": 1536, "n_group": 8,
        "topk_group": 3, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
    },
    "deepseek_v3": V3,
    "kimi_k2": V3 | {
        "model_type": "kimi_k2", "first_k_dense_replace": 1, "n_routed_experts": 384, "num_attention_heads": 64,
        "vocab_size": 163840, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
    },
    "glm_4_5": {
        "model_type": "glm4_moe", "num_hidden_layers": 92, "first_k_dense_replace": 3, "n_routed_experts": 160,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "hidden_size": 5120,
        "intermediate_size": 12288, "vocab_size": 151552, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
        "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "tie_word_embeddings": False,
    },
    "olmoe_1b_7b": {
        "model_type": "olmoe", "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "vocab_size": 50304,
    },
    "gpt_oss_20b": OSS | {"num_hidden_layers": 24, "num_local_experts": 32, "layer_types": ALTERNATE * 12},
    "gpt_oss_120b": OSS | {"num_hidden_layers": 36, "num_local_experts": 128, "layer_types": ALTERNATE * 18},
    "qwen1_5_moe_a2_7b": {
        "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False, "decoder_sparse_step": 1, "vocab_size": 151936,
        "use_sliding_window": False, "sliding_window": 32768,
    },
    "qwen3_30b_a3b": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 151936,
    },
    "llama_4_maverick": {
        "model_type": "llama4", "text_config": {
            "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
            "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
            "num_local_experts": 128, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "attention_chunk_size": 8192,
            "vocab_size": 202048,
        },
    },
    "jamba_1_5_large": {
        "model_type": "jamba", "hidden_size": 8192, "intermediate_size": 24576, "num_hidden_layers": 72,
        "num_attention_heads": 64, "num_key_value_heads": 8, "num_experts": 16, "num_experts_per_tok": 2,
        "attn_layer_period": 8, "attn_layer_offset": 4,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4,
        "mamba_dt_rank": 512, "vocab_size": 65536,
    },
    "mamba_2_2_7b": {
        "model_type": "mamba2", "d_model": 2560, "n_layer": 64, "vocab_size": 50277, "pad_vocab_size_multiple": 16,
        "tie_embeddings": True,
    },
    "retnet_6_7b": {
        "model_type": "retnet", "decoder_embed_dim": 4096, "decoder_layers": 32, "decoder_retention_heads": 16,
        "decoder_ffn_embed_dim": 8192, "decoder_value_embed_dim": 8192, "vocab_size": 50257, "tie_word_embeddings": True,
    },
}  # fmt: skip


def shipped(name):
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_configuration_becomes_the_model_of_the_catalogue(name):
    """Core, tables, formats and cache alike; the vision encoder of Llama 4 is not converted."""
    ours, theirs = describe(model_from_hf_config(CHECKPOINTS[name])), describe(shipped(name))
    assert ours.core == theirs.core
    for key in ("vocab", "tied_embeddings", "positions", "expert_dtype", "dtype", "active_params"):
        assert getattr(ours, key) == getattr(theirs, key), key


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if "layers" not in shipped(name)])
def test_what_the_engine_plays_is_the_same_key_by_key(name):
    made = model_from(model_from_hf_config(CHECKPOINTS[name]) | {"name": name})
    theirs = model_from(shipped(name))
    for key in theirs.__slots__:
        ours, published = getattr(made, key), getattr(theirs, key)
        if key == "router":                 # a scale of 1 need not be said
            ours, published = ({"scale": 1.0} | dict(router) for router in (ours, published))
        assert ours == published, key


def test_every_family_is_converted_by_some_checkpoint_and_stands_in_the_page():
    tried = {config["model_type"] for config in CHECKPOINTS.values()}
    assert FAMILIES.keys() - tried == {"mistral", "qwen2", "llama4_text"}       # as llama, qwen3, llama4
    (families,) = re.findall(r"Families \(`model_type`\): (.*?)\.\n", PAGE, re.DOTALL)
    assert set(re.split(r",\s+", families)) == FAMILIES.keys()


def test_the_description_shown_in_the_page_is_one():
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(describe(yaml.safe_load(shown)).core.layers) == 32


def test_a_sliding_window_is_that_of_every_layer_in_mistral():
    config = CHECKPOINTS["llama_3_2_1b"] | {"model_type": "mistral", "sliding_window": 4096}
    assert {layer[0].window for layer in describe(model_from_hf_config(config)).core.layers} == {4096}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "qwen3_mo"}, "model_type 'qwen3_mo' is not among the families known; did you mean qwen3_moe?"),
        ({"model_type": None}, "model_type 'None' is not among the families known"),
        ({"num_experts": None}, "config.json: num_experts is missing, which a qwen3_moe has"),
        ({"decoder_sparse_step": 2}, "dense and MoE layers alternate"),
        ({"mlp_only_layers": [3]}, "dense and MoE layers alternate"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq' is not converted (known: fp8, mxfp4, none)"),
    ],
)
def test_what_cannot_be_converted_says_why(change, said):
    with pytest.raises(InputError) as refused:
        model_from_hf_config(CHECKPOINTS["qwen3_30b_a3b"] | change)
    assert said in str(refused.value)


def test_the_command_writes_a_model_that_can_be_inspected_and_run(tmp_path, capsys):
    source, target = tmp_path / "config.json", tmp_path / "mine.yaml"
    source.write_text(json.dumps(CHECKPOINTS["deepseek_v3"] | {"_name_or_path": "deepseek-ai/DeepSeek-V3"}))
    assert main(["convert", str(source), "--from", "hf-config", "-o", str(target)]) == 0
    assert "671 billion parameters" in capsys.readouterr().out
    run = compose([f"model={target}"])
    assert (run.model.name, run.model.total_params) == ("deepseek_v3", model_from(shipped("deepseek_v3")).total_params)
    assert main(["inspect", str(target)]) == 0
    assert "671 billion" in capsys.readouterr().out
    assert main(["convert", str(source), "--from", "hf-config"]) == 0
    assert describe(yaml.safe_load(capsys.readouterr().out)).total_params == run.model.total_params


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no such file"), ("{", "not JSON"), ("[]", "holds no configuration"), ("{}", "is not among the families")],
)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(tmp_path, capsys, content, said):
    source = tmp_path / "config.json"
    if content is not None:
        source.write_text(content)
    assert main(["convert", str(source), "--from", "hf-config"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
