"""Texts from a file or standard input: a line each, or a column of .csv, .tsv or JSON lines."""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from rtp_llm.errors import ConfigError, InvalidRequest, one_line

STDIN = "-"
LINES_HELP = f"UTF-8 file with one text a line; {STDIN} is standard input"
TEXTS_HELP = f"{LINES_HELP}; of .jsonl, .csv and .tsv the texts of a column"
COLUMN_HELP = "of .jsonl the key, of .csv and .tsv the name in the first row"
_COLUMN = "text"
_JSON_LINES = (".jsonl", ".ndjson")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "a comma", "\t": "a tab"}


def read_lines(path: str) -> list[str]:
    """The lines of a file, or of standard input; OSError, or InvalidRequest that names the line that is not UTF-8."""
    text = _decoded(path)
    # Not splitlines(), which also ends lines at form feeds and Unicode's separators.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def read_texts(path: str, column: str | None) -> list[str]:
    """The lines, or where the file's ending says so a column of its rows; errors as `read_lines`."""
    if not is_table(path):
        check_no_column(column)
        return read_lines(path)
    return [text for (text,) in read_columns(path, [column or _COLUMN])]


def read_columns(path: str, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Of each row of .jsonl, .csv or .tsv the texts in `columns`; InvalidRequest names the line that has none.

    A JSON line may be a text itself, where one column is read. Lines that are empty are no rows. What would be lost
    is an error too: a second column of a name that is read, and cells without a column.
    """
    delimiter = _DELIMITERS.get(_suffix(path))
    rows = _json_rows(path) if delimiter is None else _table_rows(path, delimiter, columns)
    found = []
    for number, row in rows:
        is_text = isinstance(row, str) and len(columns) == 1
        found.append((row,) if is_text else tuple(_field(row, name, f"{path}: line {number}") for name in columns))
    return found


def is_table(path: str) -> bool:
    """Whether the ending of the file's name says that it has columns."""
    return _suffix(path) in (*_JSON_LINES, *_DELIMITERS)


def check_no_column(column: str | None) -> None:
    """ConfigError for a column of what is read as lines."""
    if column is not None:
        message = f"column: {column!r:.100} is of .jsonl, .csv and .tsv files; others are read a text a line"
        raise ConfigError(message, param="column")


def _suffix(path: str) -> str:
    return "" if path == STDIN else Path(path).suffix.lower()


def _decoded(path: str) -> str:
    if path == STDIN and sys.stdin is None:
        raise OSError("standard input is closed; name a file")
    content = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        name = "standard input" if path == STDIN else path
        # A byte-order mark that was left out counts in none of the error's places.
        number = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidRequest(
            f"{name}: line {number} is not UTF-8 (byte 0x{error.object[error.start]:02x}); "
            "convert the file, e.g. with iconv"
        ) from None


def _json_rows(path: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            yield number, orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"{path}: line {number} is not JSON: {one_line(error.msg)}") from None


def _table_rows(path: str, delimiter: str, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    text = _decoded(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = list(reader.fieldnames or ())
        twice = next((name for name in columns if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidRequest(f"{path}: the first row has {names.count(twice)} columns {twice!r:.100}; rename them")
        # Of a table without rows too, of which no row can say so.
        for column in columns if names else ():
            _field(dict.fromkeys(names, ""), column, f"{path}: line 1")
        for row in reader:
            beyond = row.pop(None, [])  # csv's name for what a row has beyond the columns
            if any(beyond):
                raise InvalidRequest(
                    f"{path}: line {reader.line_num} has {len(names) + len(beyond)} cells and the first row "
                    f"{len(names)}; put a text with {_NAMES[delimiter]} in quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise InvalidRequest(f"{path}: line {reader.reader.line_num}: {error}") from None


def _field(row: Any, column: str, where: str) -> str:
    """A row's text; InvalidRequest says what there is instead."""
    if not isinstance(row, dict) or column not in row:
        there = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
        raise InvalidRequest(f"{where} has no {column!r}, but {there:.200}; --column names another")
    value = row[column]
    if not isinstance(value, str):
        shown = "missing" if value is None else f"{value!r:.100}"
        raise InvalidRequest(f"{where}: {column!r} is {shown}; a text is needed")
    return value
