"""Tiny models of Hugging Face's mixture-of-experts classes, built from configs with random weights: nothing is downloaded."""

from __future__ import annotations

SIZE = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "head_dim": 4}

CASES = {       # class: (config, what it is given beyond SIZE, experts, top_k, layers with experts)
    "MixtralForCausalLM": ("MixtralConfig", {"num_local_experts": 6, "num_experts_per_tok": 2}, 6, 2, 3),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                                               "shared_expert_intermediate_size": 8}, 6, 2, 3),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                                               "head_dim": 8}, 6, 2, 3),
    "OlmoeForCausalLM": ("OlmoeConfig", {"num_experts": 6, "num_experts_per_tok": 2}, 6, 2, 3),
    "DeepseekV2ForCausalLM": ("DeepseekV2Config", {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 8,
                                                   "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
                                                   "topk_method": "greedy", "n_shared_experts": 1, **LATENT}, 8, 3, 2),
    "DeepseekV3ForCausalLM": ("DeepseekV3Config", {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                                                   "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
                                                   "n_shared_experts": 1, **LATENT}, 8, 2, 2),
    "Glm4MoeForCausalLM": ("Glm4MoeConfig", {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                                             "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "head_dim": 8,
                                             "n_shared_experts": 1}, 8, 2, 2),
    "GptOssForCausalLM": ("GptOssConfig", {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 8}, 6, 2, 3),
    "MiniMaxM2ForCausalLM": ("MiniMaxM2Config", {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 8}, 6, 2, 3),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", {"num_local_experts": 6, "num_experts_per_tok": 2}, 6, 2, 3),
    "PhimoeForCausalLM": ("PhimoeConfig", {"num_local_experts": 6, "num_experts_per_tok": 2}, 6, 2, 3),
    "JambaForCausalLM": ("JambaConfig", {"num_experts": 6, "num_experts_per_tok": 2, "expert_layer_period": 2,
                                         "expert_layer_offset": 1, "attn_layer_period": 3, "attn_layer_offset": 0,
                                         "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}, 6, 2, 1),
    "Llama4ForCausalLM": ("Llama4TextConfig", {"num_local_experts": 6, "num_experts_per_tok": 1, "head_dim": 8,
                                               "intermediate_size_mlp": 24, "interleave_moe_layer_step": 1}, 6, 1, 3),
    "SwitchTransformersForConditionalGeneration": ("SwitchTransformersConfig", {
        "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "num_experts": 6,
        "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "decoder_start_token_id": 0}, 6, 1, 2),
}


def build(name, seed=0):
    """(model in evaluation mode, experts, top_k, layers with experts) of a class."""
    import torch
    import transformers

    config, extra, experts, top_k, layers = CASES[name]
    given = {**SIZE, **extra}
    torch.manual_seed(seed)
    model = getattr(transformers, name)(getattr(transformers, config)(**given))
    with torch.no_grad():
        for parameter in model.parameters():            # router weights that start at 0 would choose alike everywhere
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(0, 0.5)
    return model.eval(), experts, top_k, layers
