"""Every option, once: a frozen dataclass chain that is the flags, the environment, docs/flags.md and the Python API.

Flags are spelled as the field, in any case, with `_` or `-`. The command line beats the environment, which beats the
default.
"""

from dataclasses import dataclass, fields

from rtp_llm.errors import ConfigError
from rtp_llm.option import checked, option

DTYPES = {
    "auto": "auto", "fp32": "fp32", "float32": "fp32", "fp16": "fp16", "float16": "fp16", "half": "fp16",
    "bf16": "bf16", "bfloat16": "bf16", "bp16": "bf16",
}  # fmt: skip
TASKS = {
    "auto": "auto", "dense_embedding": "DENSE_EMBEDDING", "sparse_embedding": "SPARSE_EMBEDDING",
    "colbert_embedding": "COLBERT_EMBEDDING", "all_embedding": "ALL_EMBEDDING", "bge_m3": "BGE_M3",
    "reranker": "RERANKER", "seq_classification": "SEQ_CLASSIFICATION", "classifier": "SEQ_CLASSIFICATION",
    "token_classification": "TOKEN_CLASSIFICATION", "custom": "CUSTOM",
}  # fmt: skip
POOLINGS = ("auto", "cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What an engine needs: the checkpoint, how to compute, how to batch."""

    checkpoint_path: str = option(
        help="folder with config.json, weights and tokenizer, or a hub id such as BAAI/bge-small-en-v1.5; the server "
        "takes several, as PATH or NAME=PATH (docs/models.md)",
        group="model",
        aliases=("model", "model_id"),
    )
    tokenizer_path: str = option("", help="folder of the tokenizer, when it is not the checkpoint's", group="model")
    model_type: str = option("auto", help="architecture; auto reads config.json", group="model")
    task_type: str = option("auto", help="what to serve; auto reads the checkpoint", group="model", choices=TASKS)
    embedding_model: int = option(
        0, help="1: DENSE_EMBEDDING when task_type is auto", group="model", minimum=0, maximum=1
    )
    pooling: str = option(
        "auto",
        help="pooling of a checkpoint without modules.json; auto: as sentence-transformers does, mean, or "
        "lasttoken of a causal language model (ForCausalLM)",
        group="model",
        choices=POOLINGS,
    )
    custom_module: str = option(
        "", help="FILE.py:Class, post-processing for task_type CUSTOM (docs/custom_postprocessing.md)", group="model"
    )
    trust_remote_code: bool = option(
        False, help="run the Python modules that modules.json names in the checkpoint's own folder", group="model"
    )
    default_prompt_name: str = option(
        "", help="the checkpoint's prompt for requests that name none; empty: its own default", group="model"
    )
    default_prompt: str = option("", help="text put before inputs where a request names no prompt", group="model")
    lora_modules: tuple[str, ...] = option(
        (),
        help="adapters (LoRA) that requests choose by name, as NAME=FOLDER or NAME=HUB_ID; several with commas, or "
        "given several times (docs/models.md)",
        group="model",
    )
    max_seq_len: int = option(0, help="tokens kept of one input; 0: the checkpoint's limit", group="model", minimum=0)
    json_model_override_args: str = option(
        "", help='a JSON object over config.json, e.g. {"rope_scaling": {"type": "yarn", "factor": 4.0}}', group="model"
    )

    hub: str = option(
        "huggingface",
        help="where a hub id is looked up",
        group="hub",
        choices=("huggingface", "modelscope"),
        env="RTP_LLM_HUB",
    )
    revision: str = option("", help="branch, tag or commit of the hub id", group="hub", env="RTP_LLM_REVISION")
    hf_token: str = option("", help="token for private repositories", group="hub", secret=True)
    hf_endpoint: str = option("", help="address of another hub", group="hub")
    hf_hub_offline: bool = option(False, help="use only what is already in the cache", group="hub")
    download_dir: str = option("", help="cache folder; empty: the hub library's own", group="hub")

    backend: str = option(
        "auto",
        help="implementation of the ops; auto: where there is a GPU triton, or torch where that is not installed, else "
        "native, or numpy where it was not built",
        group="compute",
        choices=("auto", "native", "numpy", "torch", "triton"),
        env="RTP_LLM_BACKEND",
    )
    device: str = option(
        "auto",
        help="cpu, or a torch device (cuda, cuda:1); auto: a GPU where there is one",
        group="compute",
        env="RTP_LLM_DEVICE",
    )
    act_type: str = option(
        "auto",
        help="dtype of the activations; auto on a GPU: fp16 for encoders, bf16 for decoders, BART, DeBERTa and "
        "encoders that norm what a layer reads (ModernBERT, T5), or where config.json says so; a CPU computes in fp32, "
        "but with AMX or bf16 dot products it multiplies fewer bits where fp16 or bf16 is asked for (docs/numerics.md)",
        group="compute",
        choices=DTYPES,
        aliases=("dtype",),
    )
    num_threads: int = option(0, help="cores to compute on; 0: all this process may use", group="compute", minimum=0)
    quantization: str = option(
        "none",
        help="of the linear layers, on a CPU: int8 computes in 8 bits, in a third of the time; int8_weights and "
        "int4_weights keep weights in 8 or 4 bits and compute in fp32, for large models (docs/numerics.md); fp8: on a "
        "GPU, where the model stays close enough to itself (docs/gpu.md)",
        group="compute",
        choices={
            "none": "none", "": "none", "int8": "int8", "int8_weights": "int8_weights", "int4_weights": "int4_weights",
            "fp8": "fp8",
        },
    )  # fmt: skip
    weight_dtype: str = option(
        "auto",
        help="dtype of weights in a CPU's memory; auto: bf16 where that loses nothing, else fp32; bf16: rounded to it, "
        "half the memory",
        group="compute",
        choices={"auto": "auto", "bf16": "bf16", "bfloat16": "bf16"},
    )
    quantization_check: bool = option(
        True,
        help="compare a quantised model with fp32 when it is loaded, on built-in texts, and log the cosines; it takes "
        "the time and the memory of loading in fp32 as well",
        group="compute",
    )
    gelu: str = option(
        "erf",
        help="tanh: the other form of GELU, which a GPU computes on a product's way out; another model by about 1e-3",
        group="compute",
        choices=("erf", "tanh"),
    )
    instruction_set: str = option(
        "auto",
        help="native kernels to use; auto: the best this CPU has",
        group="compute",
        choices=(
            "auto",
            "amx",
            "avx512_bf16",
            "avx512_vnni",
            "avx512",
            "avx2_vnni",
            "avx2",
            "neon_bf16",
            "neon_dotprod",
            "generic",
        ),
        env="RTP_LLM_INSTRUCTION_SET",
    )
    tp_size: int = option(
        1, help="GPUs that hold a part each of a decoder model (docs/gpu.md)", group="compute", minimum=1, maximum=64
    )
    dp_size: int = option(
        1, help="GPUs that hold a copy each, behind one queue (docs/gpu.md)", group="compute", minimum=1, maximum=64
    )
    cuda_graph_mb: int = option(
        1024, help="memory of a GPU for CUDA graphs of small steps; 0: none", group="compute", minimum=0
    )
    device_cache_dir: str = option(
        "", help="folder for what was measured of a GPU; empty: ~/.cache/rtp_llm", group="compute"
    )
    warm_up: bool = option(
        True, help="run a canary before the server says ready", group="compute", aliases=("model_warm_up",)
    )

    max_context_batch_size: int = option(
        0,
        help="token budget of one step, in units of max_seq_len; 0: chosen for the device",
        group="batching",
        minimum=0,
    )
    prefix_cache_mb: int = option(
        256,
        help="memory for what causal models computed of instructions and queries that many inputs begin with; 0: none",
        group="batching",
        minimum=0,
    )
    max_queued_tokens: int = option(
        4_000_000, help="tokens that may wait in each lane; over it 429", group="batching", minimum=1
    )
    max_bulk_requests: int = option(
        256, help="requests of more than one step in flight; over it 429", group="batching", minimum=1
    )
    bulk_share: int = option(
        20,
        help="percent of the tokens that requests of more than one step are sure of while smaller ones overtake them",
        group="batching",
        minimum=1,
        maximum=99,
    )
    result_cache_mb: int = option(
        0, help="megabytes of results kept for inputs that come again; 0: none", group="batching", minimum=0
    )
    max_request_tokens: int = option(
        2_000_000, help="tokens of one request, all inputs together; over it 413", group="batching", minimum=1
    )
    tokenizer_threads: int = option(2, help="threads that tokenise", group="batching", minimum=1)

    def __post_init__(self) -> None:
        for spec in fields(self):
            object.__setattr__(self, spec.name, checked(spec, getattr(self, spec.name)))

    @property
    def checkpoint_name(self) -> str:
        """The last part of the checkpoint's path or hub id."""
        return self.checkpoint_path.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class ServerConfig(EngineConfig):
    """One engine or several behind HTTP."""

    models: str = option(
        "",
        help="YAML file of several models, instead of checkpoint_path (docs/models.md)",
        group="model",
        env="RTP_LLM_MODELS",
    )
    host: str = option(
        "0.0.0.0", help="address to listen on", group="server", env="RTP_LLM_HOST", aliases=("hostname",)
    )
    start_port: int = option(
        8088, help="port to listen on", group="server", minimum=0, maximum=65535, aliases=("port",)
    )
    served_model_name: str = option(
        "",
        help="name in /v1/models and answers; empty: the checkpoint's own; once for each checkpoint_path",
        group="server",
    )
    max_client_batch_size: int = option(2048, help="inputs of one request; over it 413", group="server", minimum=1)
    auto_truncate: bool = option(
        True, help="cut inputs over the limit where a request does not say; off: they are errors", group="server"
    )
    concurrency_limit: int = option(
        1024, help="requests in flight; over it 429", group="server", minimum=1, aliases=("max_concurrent_requests",)
    )
    max_body_bytes: int = option(
        32 << 20, help="largest request body; over it 413", group="server", minimum=1024, aliases=("payload_limit",)
    )
    max_answer_bytes: int = option(
        256 << 20,
        help="bytes of tokens' vectors, entities or sparse weights in an answer, or compared for it; over it 413",
        group="server",
        minimum=1024,
    )
    max_input_characters: int = option(
        2_000_000, help="characters of one text, before it is tokenised; over it 413", group="server", minimum=1
    )
    body_timeout: int = option(30, help="seconds that a request's body may take to arrive", group="server", minimum=1)
    request_timeout: int = option(
        600,
        help="seconds that a request may wait and be computed; over it 504; a caller may set less by the header "
        "X-Request-Timeout; 0: no limit",
        group="server",
        minimum=0,
        env="RTP_LLM_REQUEST_TIMEOUT",
    )
    client_priority: bool = option(True, help="requests may choose their lane; off: size alone does", group="server")
    timeout_keep_alive: int = option(
        75, help="seconds an idle connection or unread answer is kept", group="server", minimum=1
    )
    drain_seconds: int = option(
        0,
        help="seconds after SIGTERM in which /health says 503 and requests are still served, so that load balancers "
        "leave before the port closes",
        group="server",
        minimum=0,
        aliases=("frontend_pre_stop_drain_seconds",),
    )
    shutdown_timeout: int = option(
        30, help="seconds that running requests get at shutdown; -1: 600", group="server", minimum=-1
    )
    frontend_server_count: int = option(
        1,
        help="1: one process does all; N above 1: N processes speak with clients, read small requests, write answers "
        "beside the one that computes (docs/architecture.md says when that is of use)",
        group="server",
        minimum=1,
        maximum=256,
    )
    grpc_port: int = option(
        0,
        help="port of TEI's gRPC API, package tei.v1; 0: off",
        group="server",
        minimum=0,
        maximum=65535,
        env="RTP_LLM_GRPC_PORT",
    )

    api_key: tuple[str, ...] = option(
        (),
        help="key that callers must send, as Authorization: Bearer KEY; repeat it, or separate by commas, for several; "
        "other users of this machine can read a command line, so prefer api_key_file",
        group="safety",
        env="RTP_LLM_API_KEY",
        secret=True,
    )
    api_key_file: str = option(
        "",
        help="file of more such keys, one a line, # for comments; read again when it changes, or on SIGHUP",
        group="safety",
        env="RTP_LLM_API_KEY_FILE",
    )
    cors_origins: tuple[str, ...] = option(
        ("*",),
        help="web origins whose pages may call this server, e.g. https://app.example; *: any; none: no page",
        group="safety",
        env="RTP_LLM_CORS_ORIGINS",
    )
    ssl_certfile: str = option(
        "",
        help="certificate chain (PEM): HTTPS, and gRPC over TLS, instead of plain text",
        group="safety",
        env="RTP_LLM_SSL_CERTFILE",
    )
    ssl_keyfile: str = option(
        "",
        help="private key (PEM) of ssl_certfile; empty: it stands in the same file",
        group="safety",
        env="RTP_LLM_SSL_KEYFILE",
    )

    log_level: str = option(
        "info",
        help="least severe message to log",
        group="observability",
        choices={
            "trace": "debug",
            "debug": "debug",
            "info": "info",
            "warning": "warning",
            "warn": "warning",
            "error": "error",
        },
    )
    log_format: str = option(
        "text", help="a line of the log: text, or a JSON object", group="observability", choices=("text", "json")
    )
    log_requests: float = option(
        0.0,
        help="share of the requests that get a line in the log, 0 to 1; above 0, those that are in order and fail "
        "always do",
        group="observability",
        minimum=0,
        maximum=1,
    )
    log_texts: bool = option(
        False, help="show the beginning of the inputs in the lines of log_requests", group="observability"
    )
    otlp_endpoint: str = option(
        "",
        help="address of an OpenTelemetry collector, e.g. http://localhost:4318: traces are sent to it "
        "(pip install 'rtp-llm[tracing]')",
        group="observability",
        env="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    otlp_traces_endpoint: str = option(
        "",
        help="the collector's address for traces in full, instead of otlp_endpoint with /v1/traces behind it",
        group="observability",
        env="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    )
    otlp_protocol: str = option(
        "http/protobuf",
        help="how traces are sent",
        group="observability",
        choices=("http/protobuf", "grpc"),
        env="OTEL_EXPORTER_OTLP_PROTOCOL",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grpc_port and self.grpc_port == self.start_port:
            raise ConfigError(f"grpc_port and start_port are both {self.grpc_port}: each needs one", param="grpc_port")

    @property
    def traces_endpoint(self) -> str:
        """Where traces are sent, in full; empty: nowhere."""
        if self.otlp_traces_endpoint or not self.otlp_endpoint or self.otlp_protocol == "grpc":
            return self.otlp_traces_endpoint or self.otlp_endpoint
        return self.otlp_endpoint.rstrip("/") + "/v1/traces"

    @property
    def model_name(self) -> str:
        """The name clients see."""
        return self.served_model_name or self.checkpoint_name
