"""A path or a hub id -> a folder; what is needed is downloaded once, and found again without a network."""

import errno
import glob
import importlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from rtp_llm.checkpoint.attempt import Attempt
from rtp_llm.checkpoint.folder import read_json
from rtp_llm.checkpoint.onnx import instead_of_onnx
from rtp_llm.config import EngineConfig
from rtp_llm.errors import CheckpointError, in_one_line, one_line

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_BY_NAME = ("sparse_linear.pt", "colbert_linear.pt", "artifact.metadata")
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors")
_ALWAYS = tuple(f"*{ending}" for ending in (*_SUFFIXES, *_BY_NAME))
_OTHER_FORMATS = ("onnx", "openvino", "coreml", "flax", "tf", "tensorflow", "gguf", "original")
_NEVER = (*(f"{name}/*" for name in _OTHER_FORMATS), *(f"*/{name}/*" for name in _OTHER_FORMATS), "consolidated*")
_PICKLES = "*pytorch_model*.bin"
_CACHED = "models--"  # what begins the name of a repository's folder in the cache
# Keys by which a config.json is that of a model, a Dense or a LayerNorm.
_HAVE_WEIGHTS = {"model_type", "architectures", "in_features", "dimension"}
_LOG_SECONDS = 5.0
# What the hub gets to say what it has. For the bytes themselves the libraries have limits: Hugging Face's gives up
# after six times 10 seconds without any (HF_HUB_DOWNLOAD_TIMEOUT), ModelScope's after a minute a try.
_ANSWER_SECONDS = 10.0
# What a folder that cannot be written to fails with.
_DISK = {
    getattr(errno, name, 0)
    for name in ("ENOSPC", "EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EFBIG", "EDQUOT", "EIO")
}


def resolve(config: EngineConfig, progress: bool = True) -> Path:
    """The checkpoint's folder: `checkpoint_path` itself, or the local copy of the hub id that it is.

    `progress` shows bars on a terminal and a log line every few seconds elsewhere. CheckpointError says what was looked
    for and the way out: a folder that does not exist, an unknown or private repository, no network, a full disk.
    """
    name = config.checkpoint_path
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise CheckpointError(f"checkpoint_path: {name} is a file; give the folder that it is in")
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or name in ("", ".", ".."):
        raise CheckpointError(f"checkpoint_path: there is no folder {str(path.absolute())!r}")
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"checkpoint_path: {name!r} is neither a folder nor a hub id such as BAAI/bge-small-en-v1.5"
        )
    return _from_modelscope(config) if config.hub == "modelscope" else _from_huggingface(config, progress)


def names_of(config: EngineConfig, folder: Path) -> list[str]:
    """How a checkpoint is called, in lower case: by the caller, its own folder, and its repository in a hub's cache."""
    cached = [part.rpartition("--")[2] for part in folder.parts if part.startswith(_CACHED)]
    return [name.lower() for name in (config.checkpoint_name, folder.name, *cached)]


def wanted_files(names: Sequence[str], *, with_code: bool = False) -> list[str]:
    """Of a repository's files those that are read: a folder's pickled weights only where it has no safetensors."""
    suffixes = (*_SUFFIXES, *((".py",) if with_code else ()))
    paths = [
        path
        for path in map(PurePosixPath, names)
        if not path.parts[0].startswith("consolidated") and not set(path.parts[:-1]) & set(_OTHER_FORMATS)
    ]
    safe = {path.parent for path in paths if path.suffix == ".safetensors"}
    wanted = []
    for path in paths:
        pickled = path.name.startswith("pytorch_model") and path.suffix == ".bin" and path.parent not in safe
        if path.suffix in suffixes or path.name in _BY_NAME or pickled:
            wanted.append(str(path))
    return wanted


def _from_huggingface(config: EngineConfig, progress: bool) -> Path:
    # NOTE: the border to the hub library: its transport's exceptions are of requests, httpx or httpx2, by version.
    try:
        if config.hf_hub_offline:
            return _cached(config)
        try:
            return _download(config, _list(config), progress)
        except CheckpointError:
            raise
        except Exception as error:
            folder = _cached_if_whole(config)
            if folder is None:
                raise
            _warn_of_cached(config, error)
            return folder
    except Exception as error:
        raise _translated(error, config) from error


def _list(config: EngineConfig) -> list[str]:
    """The files to have, also noted in the cache, so that a copy can be known to be whole without the hub."""
    from huggingface_hub import HfApi

    name = config.checkpoint_path
    api = HfApi(endpoint=config.hf_endpoint or None, token=config.hf_token or None)
    model = Attempt().run(
        lambda: api.model_info(name, revision=config.revision or None, timeout=_ANSWER_SECONDS), _ANSWER_SECONDS
    )
    names = [file.rfilename for file in model.siblings or ()]
    wanted = wanted_files(names, with_code=config.trust_remote_code)
    if not any(path.endswith((".safetensors", ".bin")) for path in wanted):
        found = ", ".join(sorted(names)[:10]) or "no file at all"
        instead = instead_of_onnx(names, getattr(model.card_data, "base_model", None))
        raise CheckpointError(
            f"{name} has no safetensors or pytorch_model.bin ({found}); other formats are not read{instead}"
        )
    manifest = _manifest(config, PurePosixPath(model.sha or "unknown").name)
    try:
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps(wanted))
    except OSError as error:
        logger.debug("%s cannot be written: %s", manifest, error)
    return wanted


def _manifest(config: EngineConfig, commit: str) -> Path:
    """Where the file list of one commit is kept, beside the library's own folders for the repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = _CACHED + config.checkpoint_path.replace("/", "--")
    return Path(config.download_dir or HF_HUB_CACHE).expanduser() / repository / "rtp_llm" / f"{commit}.json"


def _download(config: EngineConfig, wanted: Sequence[str], progress: bool) -> Path:
    from huggingface_hub import snapshot_download

    # NOTE: it lists the repository again, without a timeout, before it makes its first bar.
    attempt = Attempt()
    work = partial(
        snapshot_download,
        config.checkpoint_path,
        **_snapshot(config),
        endpoint=config.hf_endpoint or None,
        token=config.hf_token or None,
        allow_patterns=[glob.escape(path) for path in wanted],
        tqdm_class=_progress_class(config.checkpoint_path, progress, attempt),
    )
    return Path(attempt.run(work, 2 * _ANSWER_SECONDS))


def _snapshot(config: EngineConfig) -> dict[str, Any]:
    """Which revision, and where it is kept: what both libraries' `snapshot_download` call by the same names."""
    return {"revision": config.revision or None, "cache_dir": config.download_dir or None}


def _cached_if_whole(config: EngineConfig) -> Path | None:
    try:
        return _cached(config)
    except Exception:  # whichever way its files are damaged
        return None


def _warn_of_cached(config: EngineConfig, error: Exception) -> None:
    problem = one_line(error)
    logger.warning("%s: the hub cannot be asked (%s); using the copy in the cache", config.checkpoint_path, problem)


def _cached(config: EngineConfig) -> Path:
    """The copy in the cache; the library's LocalEntryNotFoundError where there is none or it is not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = Path(
        snapshot_download(
            config.checkpoint_path,
            **_snapshot(config),
            local_files_only=True,
            allow_patterns=list(_ALWAYS),
            ignore_patterns=list(_NEVER),
        )
    )
    manifest = _manifest(config, folder.name)
    wanted = json.loads(manifest.read_text()) if manifest.is_file() else []
    missing = [path for path in wanted if not (folder / path).is_file()]
    if missing or not _has_weights(folder):
        raise LocalEntryNotFoundError(f"{folder} has no {', '.join(missing) or 'weights'}")
    return folder


def _has_weights(folder: Path) -> bool:
    return any(any(folder.rglob(pattern)) for pattern in ("*.safetensors", _PICKLES))


def _translated(error: Exception, config: EngineConfig) -> CheckpointError:
    """The hub library's error as ours, with the way out."""
    from huggingface_hub import errors

    if isinstance(error, CheckpointError):
        return error
    name, at = config.checkpoint_path, config.hf_endpoint or "the hub"
    failed = next((cause for cause in _causes(error) if getattr(cause, "errno", None) in _DISK), None)
    if getattr(failed, "errno", None) == errno.ENOSPC:
        return CheckpointError(f"{name}: the disk is full; free some space or set download_dir to another disk")
    if failed is not None:
        folder = config.download_dir or "the hub library's cache (HF_HOME)"
        return CheckpointError(f"{name} cannot be written to {folder}: {failed}; set download_dir to another folder")
    # The order matters: a gated repository is a kind of unknown one, and both are HTTP errors.
    known: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, f"{name} is gated: accept its terms at {at}, then set hf_token (HF_TOKEN)"),
        (
            errors.RevisionNotFoundError,
            f"{name} has no revision {config.revision!r}; leave revision empty for the default",
        ),
        (
            errors.RepositoryNotFoundError,
            f"{at} has no repository {name}, or it is private: check the name, or set hf_token (HF_TOKEN); "
            f"a folder would be {str(Path(name).absolute())!r}, which does not exist",
        ),
        (errors.HFValidationError, f"{name!r} is not a hub id: {error}"),
    )
    for kind, message in known:
        if isinstance(error, kind):
            return CheckpointError(message)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return CheckpointError(
            f"{at} refused the token for {name} (HTTP {status}); set hf_token (HF_TOKEN) to a valid one"
        )
    if config.hf_hub_offline:
        return CheckpointError(
            f"{name} is not, or not completely, in the cache and hf_hub_offline is set; "
            "start once without it, or give the checkpoint's folder"
        )
    return CheckpointError(
        f"{name} cannot be downloaded from {at}: {in_one_line(error)}; check the network or hf_endpoint "
        "and start again, which keeps the files that are complete, or give the checkpoint's folder"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _progress_class(name: str, progress: bool, attempt: Attempt) -> type[Any]:
    """A tqdm that draws on a terminal, logs elsewhere, and is silent without `progress`.

    The first bar is a download's sign that it has begun; once it is given up, they end it.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Progress(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            attempt.begun.set()
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> Any:
            if attempt.given_up.is_set():
                raise InterruptedError(f"the download of {name} was given up")
            return super().update(n)

    if progress and sys.stderr.isatty():
        return Progress

    class LoggedProgress(Progress):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._logged_at = time.monotonic()
            kwargs["disable"] = not progress
            super().__init__(*args, **kwargs)

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            now = time.monotonic()
            if now - self._logged_at >= _LOG_SECONDS and self.total:
                self._logged_at = now
                done, total = tqdm.format_sizeof(self.n), tqdm.format_sizeof(self.total)
                logger.info("%s: %s of %s %s", name, done, total, "bytes" if self.unit == "B" else "files")
            return True

        def clear(self, nolock: bool = False) -> None:
            pass

    return LoggedProgress


def _from_modelscope(config: EngineConfig) -> Path:
    try:
        snapshot_download = importlib.import_module("modelscope").snapshot_download
    except ImportError:
        raise CheckpointError("hub modelscope needs its library: pip install rtp-llm[modelscope]") from None
    name = config.checkpoint_path
    logger.info("%s: looking it up on modelscope", name)
    try:
        folder = _modelscope_folder(config, snapshot_download, offline=config.hf_hub_offline)
    except Exception as error:  # the border to the modelscope library
        try:
            folder = _modelscope_folder(config, snapshot_download, offline=True)
        except Exception:
            folder = None
        if folder is None:
            raise CheckpointError(f"{name} cannot be had from modelscope: {in_one_line(error)}") from error
        _warn_of_cached(config, error)
    if folder is None:
        raise CheckpointError(
            f"{name} on modelscope has no safetensors or pytorch_model.bin; other formats are not read"
        )
    return folder


def _modelscope_folder(config: EngineConfig, snapshot_download: Callable[..., str], *, offline: bool) -> Path | None:
    """The folder of the model, in the cache alone where `offline`; None where it has no weights that are read."""
    patterns = [*_ALWAYS, *(("*.py",) if config.trust_remote_code else ())]
    download = partial(
        snapshot_download,
        config.checkpoint_path,
        **_snapshot(config),
        local_files_only=offline,
        ignore_patterns=list(_NEVER),
    )
    folder = Path(download(allow_patterns=patterns))
    pickles = _pickles_needed(folder)
    if pickles:
        folder = Path(download(allow_patterns=[*patterns, *pickles]))
    return folder if _has_weights(folder) else None


def _pickles_needed(folder: Path) -> list[str]:
    """Patterns of pickled weights: of each folder whose config.json is of something with weights, and that has none."""
    places = [path.parent for path in folder.rglob("config.json")]
    patterns = [
        (place.relative_to(folder) / "pytorch_model*.bin").as_posix()
        for place in places
        if _HAVE_WEIGHTS & read_json(place, "config.json").keys() and not any(place.glob("*.safetensors"))
    ]
    return patterns if patterns or _has_weights(folder) else [_PICKLES]
