"""What other systems record, as `moetrace/1`: plain functions from a file or folder to tokens or counts.

An importer is `name(path, *, options) -> Imported`; options are keyword-only. docs/traces.md has the table of formats.
"""

from clustersim.importers.arrays import deepseek_eplb, hf_router_logits, llama_imatrix, moe_infinity
from clustersim.importers.megatron_core import megatron
from clustersim.importers.nvidia import tensorrt_llm
from clustersim.importers.rebatching import moetrace
from clustersim.importers.sglang import sglang_per_pass, sglang_per_token, sglang_routed_experts, sglang_stat
from clustersim.importers.tables import flame_moe, moe_balance, table
from clustersim.importers.vllm import vllm_eplb, vllm_moe_log, vllm_routed_experts

__all__ = [
    "deepseek_eplb", "flame_moe", "hf_router_logits", "llama_imatrix", "megatron", "moe_balance", "moe_infinity", "moetrace",
    "sglang_per_pass", "sglang_per_token", "sglang_routed_experts", "sglang_stat", "table", "tensorrt_llm", "vllm_eplb",
    "vllm_moe_log", "vllm_routed_experts",
]  # fmt: skip
