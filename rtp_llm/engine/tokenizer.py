"""Text, pairs and ready token ids -> Items, as transformers and sentence-transformers tokenise them.

Nothing of a Tokenizer changes after it is loaded, so any number of threads may encode at once: texts are encoded whole
and cut here, by transformers' rules, instead of setting a truncation on the shared object.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rtp_llm.config import EngineConfig
from rtp_llm.core import Input, Item, Params
from rtp_llm.engine import tokenizer_files as files
from rtp_llm.engine.chat_template import ChatTemplate
from rtp_llm.engine.prompt_cache import PromptCache
from rtp_llm.engine.shortening import CHARACTERS_PER_TOKEN, Shortening, Side, Text, most_characters, parts_of
from rtp_llm.engine.tokenizer_cuts import find_cuts
from rtp_llm.engine.tokenizer_words import TokenWords, spans_of
from rtp_llm.engine.tokens import Encoded, Framed, Token, check_ids, unicode_problem
from rtp_llm.engine.truncation import longest_first, only_first, only_second
from rtp_llm.errors import CheckpointError, ConfigError, InputTooLong, InvalidInput, InvalidRequest, RequestTooLarge
from rtp_llm.model_config import ModelConfig, sequence_limit

logger = logging.getLogger(__name__)

Encoding: TypeAlias = Any


class Tokenizer:
    """The tokenizer of a checkpoint's folder, under the checkpoint's settings.

    max_seq_len          tokens kept of one input, special ones included
    vocab_size           rows of the model's embedding table; None: as many as the tokenizer has ids
    do_lower_case        of sentence_bert_config.json: text is lower-cased before anything else
    prompts              name -> text put before an input; `query` and `document` always exist, empty by default
    default_prompt_name  the prompt of a request that names none
    markers              prompts that are read as one token, where the tokenizer has one of that name
    plain                tokenizer.json alone tells, without special tokens; no text at all is the id `vocab_size`
    may_be_empty         a text without tokens is read as none
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_seq_len: int,
        vocab_size: int | None = None,
        do_lower_case: bool = False,
        prompts: Mapping[str, str | None] | None = None,
        default_prompt_name: str | None = None,
        markers: Sequence[str] = (),
        plain: bool = False,
        may_be_empty: bool = False,
    ) -> None:
        self._tokenizer, config = files.load_plain(folder) if plain else files.load(folder)
        if do_lower_case:
            files.add_lowercase(self._tokenizer)
        files.add_markers(self._tokenizer, markers)
        self.max_seq_len = min(max_seq_len, config.get("cuts_at", max_seq_len))
        self.truncation_side: Side = "left" if config.get("truncation_side") == "left" else "right"
        self.prompts = {"query": "", "document": "", **{name: text or "" for name, text in (prompts or {}).items()}}
        self.default_prompt_name = default_prompt_name
        if default_prompt_name is not None and default_prompt_name not in self.prompts:
            raise CheckpointError(f"{folder}: default_prompt_name {default_prompt_name!r} is not among its prompts")
        num_special = self._tokenizer.num_special_tokens_to_add(True)
        if max_seq_len <= num_special:
            raise ConfigError(f"max_seq_len: {max_seq_len} leaves no room beside {num_special} special tokens")
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = files.special_ids(self._tokenizer, config)
        self.chat_template = ChatTemplate(folder, config, config["special_tokens"])
        self._never_text = {
            *self.special_ids.values(),
            *(token_id for token_id, token in added.items() if token.special),
        }
        num_ids = files.num_ids(self._tokenizer)
        self.vocab_size = num_ids if vocab_size is None else vocab_size
        self._nothing = [self.vocab_size] if plain else []
        self._may_be_empty = plain or may_be_empty
        self._may_exceed = num_ids > self.vocab_size
        if self._may_exceed:
            logger.warning(
                "%s: the tokenizer has %d ids and the model's table %d rows; a text that needs one of the others is "
                "refused", folder, num_ids, self.vocab_size,
            )  # fmt: skip
        self._has_types = files.has_token_types(config)
        self.words = TokenWords(self._tokenizer, self.special_ids)
        self.cuts = find_cuts(self._tokenizer)
        self._prompt_lengths = PromptCache[int]()

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        model_config: ModelConfig,
        *,
        max_positions: int,
        vocab_size: int,
        is_hard: bool = True,
    ) -> "Tokenizer":
        """The tokenizer of a checkpoint, for a model of `max_positions` positions and `vocab_size` embedding rows.

        `is_hard`: the model can read no more tokens than that.
        """
        folder = Path(config.tokenizer_path).expanduser() if config.tokenizer_path else model_config.transformer_folder
        if not folder.is_dir():
            raise CheckpointError(f"tokenizer_path: there is no folder {str(folder.absolute())!r}")
        longest = files.NO_LIMIT if model_config.is_static else files.model_max_length(folder)
        return cls(
            folder,
            max_seq_len=sequence_limit(config, model_config, max_positions, longest, is_hard=is_hard),
            vocab_size=vocab_size,
            do_lower_case=model_config.do_lower_case,
            prompts=model_config.prompts,
            default_prompt_name=model_config.default_prompt_name,
            markers=model_config.late.markers if model_config.late else (),
            plain=model_config.is_static,
        )

    def encode(self, inputs: Sequence[Input], params: Params, start: int = 0) -> list[Item]:
        """An Item per input, in order; `start` is the place of the first one in its request.

        InvalidRequest names the input that cannot be encoded, and the way out.
        """
        limited = self.limited(params, pairs=any(isinstance(value, tuple) for value in inputs))
        if limited is not self:
            return limited.encode(inputs, params, start)
        prompt = self.prompt_text(params)
        prompt_length = self._prompt_length(prompt, params.add_special_tokens) if prompt else 0
        items: dict[int, Item] = {}
        texts: dict[int, Text] = {}
        for index, value in enumerate(inputs, start):
            if isinstance(value, str):
                texts[index] = prompt + value if prompt else value
            elif isinstance(value, list):
                items[index] = self._from_ids(value, index, params)
            elif isinstance(value, tuple) and len(value) == 2 and all(isinstance(text, str) for text in value):
                texts[index] = (prompt + value[0], value[1])
            else:
                kind = type(value).__name__
                raise InvalidRequest(
                    f"input {index} is a {kind}; a text, a pair of texts or a list of token ids is read"
                )
        for index, encoded in zip(texts, self._encoded(texts, params, len(prompt)), strict=True):
            items[index] = self._from_text(encoded, index, prompt_length, params)
        return [items[index] for index in range(start, start + len(inputs))]

    def framed(self, inputs: Sequence[str | list[int]], params: Params, start: int = 0) -> list[Framed]:
        """All tokens of single inputs, whatever their number; a list of ids has no frame."""
        prompt, none = self.prompt_text(params), np.zeros(0, np.int32)
        texts = {index: prompt + value for index, value in enumerate(inputs, start) if isinstance(value, str)}
        length = self._prompt_length(prompt, params.add_special_tokens) if prompt and texts else 0
        offsets = params.aggregation_strategy is not None
        encodings = iter(self._run(texts, params.add_special_tokens, offsets) if texts else ())
        framed = []
        for index, value in enumerate(inputs, start):
            if isinstance(value, str):
                encoding: Encoding = next(encodings)
                spans = spans_of(encoding, -len(prompt)) if offsets else None
                framed.append(self._framed(encoding, index, length, spans))
            else:
                check_ids(value, index, self.vocab_size)
                framed.append(Framed(none, np.array(value, np.int32), none, 0))
        return framed

    def _framed(
        self, encoding: Encoding, index: int, prompt_length: int, spans: list[tuple[int, int]] | None
    ) -> Framed:
        ids = np.array(encoding.ids or self._nothing, np.int32)
        own = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        if not len(ids):
            raise InvalidInput(index, " has no tokens; send some text, or leave add_special_tokens true")
        self._check_known(encoding.ids, index)
        # Of no text at all, there are special tokens alone; which of them lead makes no difference then.
        first, last = (own[0], own[-1] + 1) if own else (len(ids), len(ids))
        first = min(max(first, prompt_length), last)
        own_spans = None if spans is None else np.array(spans[first:last], np.int32).reshape(-1, 2)
        return Framed(ids[:first], ids[first:last], ids[last:], prompt_length, own_spans)

    def tokens(self, text: Text, *, add_special_tokens: bool = True) -> list[Token]:
        """The tokens of a text or pair as it is, no prompt, no limit; RequestTooLarge where it is long and whole."""
        most = most_characters(self.max_seq_len)
        if len(text) > most:
            raise RequestTooLarge(
                f"a text, or a part of it without a place between two words, has {len(text)} characters, the limit is "
                f"{most}: split it"
            )
        (encoding,) = self._run({0: text}, add_special_tokens, offsets=True)
        rows = zip(encoding.ids, encoding.tokens, encoding.sequence_ids, encoding.offsets, strict=True)
        return [
            Token(token_id, token, sequence is None, *((None, None) if sequence is None else span))
            for token_id, token, sequence, span in rows
        ]

    def limited(self, params: Params, *, pairs: bool = False) -> "Tokenizer":
        """The same tokenizer under the request's own limit; InvalidRequest where that leaves room for no text."""
        most = params.max_tokens
        if most is None or most >= self.max_seq_len:
            return self
        special = self._tokenizer.num_special_tokens_to_add(pairs) if params.add_special_tokens else 0
        if most <= special:
            raise InvalidRequest(f"a limit of {most} tokens leaves no room beside {special} special tokens")
        return self.narrowed(self.max_seq_len - most)

    def narrowed(self, num_tokens: int) -> "Tokenizer":
        """The same tokenizer, for inputs to which `num_tokens` tokens will be added."""
        narrowed = copy.copy(self)
        narrowed.max_seq_len -= num_tokens
        narrowed._prompt_lengths = PromptCache()
        if narrowed.max_seq_len < 1:
            raise ConfigError(
                f"max_seq_len: {self.max_seq_len} leaves no room beside a template of {num_tokens} tokens"
            )
        return narrowed

    def token_id(self, piece: str) -> int | None:
        """The id of the vocabulary's own word; None where it has no such word."""
        token_id: int | None = self._tokenizer.token_to_id(piece)
        return token_id

    def piece(self, token_id: int) -> str:
        """The vocabulary's own word for an id (`▁what`, `##ing`), which no other id has."""
        return self.words.piece(token_id)

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; InvalidRequest for an id that is out of the vocabulary."""
        check_ids(ids, 0, self.vocab_size)
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def prompt_text(self, params: Params) -> str:
        """What a request, or the checkpoint where it is silent, puts before each input; InvalidRequest as `encode`."""
        if params.prompt is not None:
            return self._checked(params.prompt, "prompt")
        name = params.prompt_name if params.prompt_name is not None else self.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts))
            raise InvalidRequest(f"prompt_name {name!r} is not a prompt of this model: {known}", param="prompt_name")
        return self.prompts[name]

    def instruction_text(self, params: Params) -> str:
        """What a request tells a reranker to look for; InvalidRequest as for a prompt. Empty where it says nothing."""
        return self._checked(params.instruction or "", "instruction")

    def _checked(self, text: str, param: str) -> str:
        """A text of the caller's that stands before each input, and is tokenised with each."""
        problem = unicode_problem(text)
        if problem:
            raise InvalidRequest(f"{param}{problem}", param=param)
        most = self.max_seq_len * CHARACTERS_PER_TOKEN
        if len(text) > most:
            raise InvalidRequest(f"{param} has {len(text)} characters, the limit is {most}", param=param)
        return text

    def _prompt_length(self, prompt: str, add_special_tokens: bool) -> int:
        """Tokens of the prompt alone, less a last one that is special: sentence-transformers' measure."""
        length = self._prompt_lengths.get(prompt, special=add_special_tokens)
        if length is None:
            (encoding,) = self._run({0: prompt}, add_special_tokens)
            ids = encoding.ids
            self._cut(encoding, Params(), [ids])
            length = len(ids) - int(bool(ids) and ids[-1] in self._never_text)
            self._prompt_lengths.put(prompt, length, special=add_special_tokens)
        return length

    def _from_ids(self, ids: list[int], index: int, params: Params) -> Item:
        """Ready ids are the model's input as they stand: no prompt, no special tokens."""
        check_ids(ids, index, self.vocab_size)
        if len(ids) <= self.max_seq_len:
            return Item(np.array(ids, np.int32), index)
        self._check_may_truncate(len(ids), index, params)
        kept = ids[-self.max_seq_len :] if self._side(params) == "left" else ids[: self.max_seq_len]
        return Item(np.array(kept, np.int32), index, truncated=True)

    def _from_text(self, encoded: Encoded, index: int, prompt_length: int, params: Params) -> Item:
        encoding, is_pair, spans = encoded
        ids = encoding.ids
        types = encoding.type_ids if is_pair and self._has_types else None
        length = len(ids)
        is_document = is_pair or (params.num_queries is not None and index >= params.num_queries)
        most = params.max_tokens_per_doc if is_document else None
        if length > self.max_seq_len or most is not None or (is_pair and params.truncation == "only_second"):
            columns = [column for column in (ids, types, spans) if column is not None]
            if is_pair and params.truncation == "only_first":
                self._check_second(encoding, index)
            self._cut(encoding, params, columns, most, is_pair=is_pair)
        truncated = len(ids) < length
        if truncated and (most is None or len(ids) == self.max_seq_len):
            self._check_may_truncate(length, index, params, is_pair=is_pair)
        elif not ids and not self._may_be_empty:
            raise InvalidInput(index, " has no tokens; send some text, or leave add_special_tokens true")
        self._check_known(ids, index)
        ids = ids or self._nothing
        token_type_ids = None if types is None else np.array(types, np.int32)
        item = Item(np.array(ids, np.int32), index, token_type_ids, prompt_length, truncated)
        if spans is not None:
            item.spans = np.array(spans, np.int32).reshape(-1, 2)
        return item

    def _check_known(self, ids: list[int], index: int) -> None:
        if self._may_exceed and max(ids, default=0) >= self.vocab_size:
            raise InvalidInput(
                index,
                f" has token {self._tokenizer.id_to_token(max(ids))!r}, id {max(ids)}, which is out of "
                f"the model's vocabulary of {self.vocab_size}; remove it from the text",
            )

    def _side(self, params: Params) -> Side:
        return params.truncation_side or self.truncation_side

    def _check_may_truncate(self, length: int, index: int, params: Params, *, is_pair: bool = False) -> None:
        if not params.truncate:
            of_both, which = (" with the other text of its pair", "one of them") if is_pair else ("", "it")
            problem = f" has at least {length} tokens{of_both} and the limit is {self.max_seq_len}; shorten or split"
            raise InputTooLong(index, f"{problem} {which}, or set {InputTooLong.CUT}")

    def _check_second(self, encoding: Encoding, index: int) -> None:
        """InputTooLong where the second text of a pair, which is not cut, leaves the first no room."""
        sequence_ids = encoding.sequence_ids
        length, room = sequence_ids.count(1), self.max_seq_len - sequence_ids.count(None)
        if length >= room:
            problem = (
                f" has {length} tokens in the second text of its pair, a label's, which is not cut: at most {room - 1}"
            )
            raise InputTooLong(index, f"{problem} leave the first one room; shorten that")

    def _cut(
        self,
        encoding: Encoding,
        params: Params,
        columns: Sequence[list[Any]],
        most: int | None = None,
        *,
        is_pair: bool = False,
    ) -> None:
        """Take the tokens over the limit, which are never the template's special ones, out of lists of all tokens."""
        sequence_ids = encoding.sequence_ids
        lengths = sequence_ids.count(0), sequence_ids.count(1)
        side = self._side(params)
        if most is None:
            wanted = lengths
        else:
            wanted = (lengths[0], min(lengths[1], most)) if is_pair else (min(lengths[0], most), 0)
        room = self.max_seq_len - sequence_ids.count(None)
        if is_pair and params.truncation == "only_second":
            kept = only_second(*wanted, room, self.max_seq_len)
        elif is_pair and params.truncation == "only_first":
            kept = only_first(*wanted, room)
        else:
            kept = longest_first(*wanted, room)
        for sequence in (1, 0):
            if kept[sequence] < lengths[sequence]:
                start = sequence_ids.index(sequence)
                stop = start + lengths[sequence]
                cut = slice(start + kept[sequence], stop) if side == "right" else slice(start, stop - kept[sequence])
                for column in columns:
                    del column[cut]

    def _encoded(self, texts: Mapping[int, Text], params: Params, lead: int) -> list[Encoded]:
        """The texts encoded whole, or enough of a long one that all the tokens it will keep are there.

        `lead` is how many characters of prompt they begin with.
        """
        if not texts:
            return []
        shorter, special = Shortening(self.cuts, self._side(params), self.max_seq_len), params.add_special_tokens
        offsets = params.aggregation_strategy is not None
        tried = {index: shorter.first(index, text) for index, text in texts.items()}
        encodings = self._run(tried, special, offsets)
        for place, (index, text) in enumerate(texts.items()):
            if not shorter.suffices(encodings[place], text, tried[index]):
                tried[index] = more = shorter.more(index, text)
                (encodings[place],) = self._run({index: more}, special, offsets)
                if not shorter.suffices(encodings[place], text, more):
                    raise shorter.refuse(index)
        pairs = zip(encodings, texts.values(), strict=True)
        encoded = [Encoded(encoding, isinstance(text, tuple)) for encoding, text in pairs]
        if not offsets:
            return encoded
        starts = [shorter.start(text, tried[index]) - lead for index, text in texts.items()]
        return [one._replace(spans=spans_of(one.encoding, start)) for one, start in zip(encoded, starts, strict=True)]

    def _run(self, texts: Mapping[int, Text], add_special_tokens: bool, offsets: bool = False) -> list[Encoding]:
        """The library's encodings; it drops the interpreter's lock meanwhile, for batches only."""
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        try:
            return list(encode(list(texts.values()), add_special_tokens=add_special_tokens))
        except TypeError:
            for index, text in texts.items():
                for part in parts_of(text):
                    problem = unicode_problem(part)
                    if problem:
                        raise InvalidInput(index, problem) from None
            raise
