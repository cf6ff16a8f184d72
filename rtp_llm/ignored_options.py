"""Options of the original that are accepted and do nothing here."""

_GPU_ONLY = "it chooses among kernels of the original's CUDA runtime"
_ONE_PROCESS = "one process holds the model"
_NO_GENERATION = "it concerns text generation or its KV cache, which embedding models do not have"
_TEXT_ONLY = "only text models are served"
# Option -> the reason, which is logged where one is given.
IGNORED: dict[str, str] = {
    "max_batch_tokens_size": "max_context_batch_size is the token budget, as in the original's embedding scheduler",
    "concurrency_with_block": "requests wait in the queue up to max_queued_tokens in any case",
    "worker_info_port_num": _ONE_PROCESS, "ep_size": _ONE_PROCESS,
    "world_size": "tp_size and dp_size say it; all devices are of one machine",
    "world_rank": _ONE_PROCESS, "local_world_size": _ONE_PROCESS, "role_type": _ONE_PROCESS,
    "int8_mode": "--quantization int8 is the option here",
    "weight_type": "weights are computed in fp32", "seq_size_per_block": _NO_GENERATION,
    "enable_cuda_graph": "small steps are captured by themselves; cuda_graph_mb 0 turns that off",
    "prefill_capture_config": "the sizes that are captured are fixed", "enable_flashinfer_trt_fmha_v2": _GPU_ONLY,
    "disable_flashinfer_native": _GPU_ONLY, "enable_flashinfer_trtllm_gen": _GPU_ONLY,
    "enable_open_source_fmha": _GPU_ONLY, "enable_opensource_fmha": _GPU_ONLY, "use_aiter_pa": _GPU_ONLY,
    "use_asm_pa": _GPU_ONLY, "torch_cuda_profiler_dir": _GPU_ONLY, "gen_timeline_sync": _GPU_ONLY,
    "grpc_config_json": "there is no gRPC hop between the HTTP server and the engine",
    "reserver_runtime_mem_mb": _NO_GENERATION, "log_path": "logs go to standard error; redirect them there",
    "vit_separation": _TEXT_ONLY, "mm_cache_item_num": _TEXT_ONLY, "url_cache_item_num": _TEXT_ONLY,
    "mm_preprocess_max_workers": _TEXT_ONLY, "mm_timeout_ms": _TEXT_ONLY, "mm_image_max_file_size_kb": _TEXT_ONLY,
    "mm_video_max_file_size_kb": _TEXT_ONLY, "gpu_max_batch_size": _TEXT_ONLY, "gpu_batch_wait_ms": _TEXT_ONLY,
    "gpu_max_batch_images": _TEXT_ONLY, "mm_max_queue_size": _TEXT_ONLY, "extra_data_path": _TEXT_ONLY,
    "biencoder_preprocess": _TEXT_ONLY, "extra_input_in_mm_embedding": _TEXT_ONLY,
}  # fmt: skip
