"""Files of a checkpoint under atheris: whatever stands in one, its reader gives tensors or a CheckpointError.

`make fuzz`, or `python -m tests.fuzz.readers safetensors|pickle|tokenizer [libFuzzer's options]`; needs `pip install
atheris`. The corpus starts from small whole files, made here, so that no run needs more than this file.
"""

import io
import json
import logging
import pickle
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rtp_llm"]):
    from rtp_llm.checkpoint.safetensors_file import SafetensorsFile
    from rtp_llm.checkpoint.torch_pickle import TorchFile
    from rtp_llm.engine import tokenizer_files
    from rtp_llm.errors import CheckpointError, ConfigError

_LARGEST = 1 << 16  # numbers read of one tensor


def safetensors(path: Path) -> None:
    """Opens a file and reads what it holds."""
    file = SafetensorsFile(path)
    for name, info in file.tensors.items():
        if sum(info.shape) < _LARGEST:
            file.read(name)
    file.close()


def torch_pickle(path: Path) -> None:
    """The same of torch's."""
    file = TorchFile(path)
    for name, info in file.tensors.items():
        if sum(info.shape) < _LARGEST:
            file.read(name)


def tokenizer(path: Path) -> None:
    """Loads a tokenizer.json and encodes a line with it."""
    made, _ = tokenizer_files.load(path.parent)
    made.encode("the weather is lovely")


def _safetensors_seeds() -> Iterator[bytes]:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    for header in ({}, {"a": entry}, {"__metadata__": {"format": "pt"}, "a": entry}):
        text = json.dumps(header).encode()
        yield struct.pack("<Q", len(text)) + text + bytes(16 if "a" in header else 0)


def _pickle_seeds() -> Iterator[bytes]:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x02K\x02\x86K\x02K\x01\x86\x89}tR"
    whole = b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s."
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name, content in (("m/data.pkl", whole), ("m/data/0", bytes(16)), ("m/version", b"3\n")):
            file.writestr(name, content)
    yield archive.getvalue()
    start = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    yield start + whole + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16)


def _tokenizer_seeds() -> Iterator[bytes]:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "the": 4, "weather": 5}
    for model in (
        {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
         "max_input_chars_per_word": 100},
        {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["\u2581the", -1.0]]},
        {"type": "BPE", "vocab": {"t": 0, "h": 1, "th": 2}, "merges": ["t h"]},
    ):  # fmt: skip
        yield json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "normalizer": {"type": "Lowercase"},
                "pre_tokenizer": {"type": "Whitespace"},
                "post_processor": None,
                "decoder": None,
                "model": model,
            }
        ).encode()


TARGETS: dict[str, tuple[str, Callable[[Path], None], Callable[[], Iterator[bytes]]]] = {
    "safetensors": ("model.safetensors", safetensors, _safetensors_seeds),
    "pickle": ("pytorch_model.bin", torch_pickle, _pickle_seeds),
    "tokenizer": ("tokenizer.json", tokenizer, _tokenizer_seeds),
}


def main(arguments: list[str]) -> None:
    """Fuzzes the target that the first argument names; the others are libFuzzer's."""
    name, read, seeds = TARGETS[arguments[1]]
    logging.disable()
    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
        (folder / name).write_bytes(seed)
        read(folder / name)  # what the corpus starts from must be whole

    def one(data: bytes) -> None:
        (folder / name).write_bytes(data)
        try:
            read(folder / name)
        except (CheckpointError, ConfigError) as error:
            assert "\n" not in error.message and error.message

    atheris.Setup([arguments[0], *arguments[2:], str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
