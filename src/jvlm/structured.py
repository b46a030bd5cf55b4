# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Answers in a given format: JSON that follows a schema, text that a regular expression matches, or one of several
choices. llguidance says which tokens can follow; `pip install 'jvlm[structured]'` installs it.
"""

import json
import re
import textwrap
from collections.abc import Callable, Sequence
from itertools import takewhile
from operator import eq
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedModel, ProcessorMixin


try:
    import llguidance
    import llguidance.hf
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "jvlm.structured needs llguidance; install it with `pip install 'jvlm[structured]'`.", name=error.name
    ) from error


# llguidance's own default allows any amount of whitespace between tokens, with which weak models fill their answers.
_JSON_OPTIONS = {"x-guidance": {"whitespace_pattern": " ?"}}


class AnswerFormats:
    r"""
    Makes [`AnswerFormat`]s for a model. Building it reads the vocabulary, which takes seconds for a large one, so make
    one per model and use it for all formats.

    Args:
        model ([`PreTrainedModel`]): the model that answers. Its generation config says which tokens end an answer.
        processor ([`ProcessorMixin`]): its processor, with a fast tokenizer.

    Raises:
        TypeError: if `model` is no model or `processor` no processor, for example because they are swapped.
        ValueError: if the tokenizer is not a fast one, if it has more tokens than the output head, or if no token ends
            an answer.

    Example:

    ```python
    >>> from jvlm.structured import AnswerFormats

    >>> formats = AnswerFormats(model, processor)
    >>> schema = {"type": "object", "properties": {"digits": {"type": "string"}}, "required": ["digits"]}
    >>> json_format = formats.json(schema)
    >>> output = model.generate(**inputs, logits_processor=[json_format], max_new_tokens=64)
    >>> text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    >>> json_format.parse(text)
    {'digits': '3 1 4'}
    ```
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        if not (hasattr(model, "generation_config") and hasattr(processor, "tokenizer")):
            found = f"{type(model).__name__} and {type(processor).__name__}"
            raise TypeError(f"`AnswerFormats` takes a model and its processor, in this order, got {found}.")
        eos_token_id = model.generation_config.eos_token_id
        if eos_token_id is None:
            raise ValueError(
                "No token ends an answer of this model; set `model.generation_config.eos_token_id` to an id or a list."
            )
        rows = model.get_output_embeddings().weight.shape[0]
        self._vocabulary = llguidance.hf.from_tokenizer(processor.tokenizer, n_vocab=rows, eos_token=eos_token_id)

    def json(self, schema: dict | bool = True) -> "AnswerFormat":
        """
        JSON that follows a schema.

        Args:
            schema (`dict` or `bool`, *optional*, defaults to `True`):
                JSON Schema, for example the `model_json_schema()` of a Pydantic model; `True` allows any JSON. At most
                one space stands between the tokens of JSON, unless `schema["x-guidance"]` has other options of
                llguidance.

        Returns:
            [`AnswerFormat`]: its `parse` returns the value.

        Raises:
            ValueError: for an invalid schema, or a keyword in it that llguidance cannot enforce; the message names it.
        """
        complete = {} if schema is True else schema
        if not isinstance(complete, (dict, bool)):
            raise ValueError(f"`schema` must be a dict, such as `json.loads` returns, got {repr(schema)[:60]}.")
        if isinstance(complete, dict):
            complete = _JSON_OPTIONS | complete
        return AnswerFormat(self._vocabulary, f"%json {json.dumps(complete)}", "JSON schema", schema, json.loads)

    def regex(self, pattern: str) -> "AnswerFormat":
        r"""
        Text that a regular expression matches from start to end.

        Args:
            pattern (`str`): in the syntax of Rust's `regex`: without look-around, back-references and `\b`.

        Returns:
            [`AnswerFormat`]: its `parse` returns the text.

        Raises:
            ValueError: for an invalid pattern; the message names the fault.
        """
        rule = f"/{llguidance.regex_to_lark(pattern, use_ascii='')}/"
        return AnswerFormat(self._vocabulary, rule, "regular expression", pattern, str)

    def choice(self, answers: Sequence[str]) -> "AnswerFormat":
        """
        One of several texts.

        Args:
            answers (`Sequence[str]`): the texts.

        Returns:
            [`AnswerFormat`]: its `parse` returns the text.

        Raises:
            ValueError: if `answers` is empty, a single string or has something else than texts.
        """
        if isinstance(answers, str) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"`answers` must be a list of one or more texts, got {answers!r}.")
        return AnswerFormat(self._vocabulary, " | ".join(map(json.dumps, answers)), "choice", list(answers), str)


class AnswerFormat(LogitsProcessor):
    """
    A logits processor that allows only tokens of answers in a format, in greedy search, sampling, beam search and
    assisted decoding. Made by [`AnswerFormats`]. It can be used for any number of calls of `generate`, one at a time.
    A prompt that is the last one and the beginning of its answer, or one more token, counts as a step of that call.
    """

    def __init__(self, vocabulary: llguidance.LLTokenizer, rule: str, kind: str, source: Any, read: Callable):
        self._vocabulary, self._read = vocabulary, read
        # Models write a space before an answer, as their chat template does.
        self._grammar_without_space = f"start: {rule}"
        self._grammar = f"start: / ?/ answer\nanswer: {rule}"
        self._name = f"the {kind} {textwrap.shorten(repr(source), 200)}"
        self._prompt_length = 0
        self._last_ids: torch.Tensor | None = None
        self._rows: list[tuple[llguidance.LLMatcher, list[int]]] = []
        if error := llguidance.LLMatcher.validate_grammar(self._grammar, vocabulary):
            # The place in the grammar and its lines are none that the user wrote.
            reason = re.split(r"\n\s+\d+ \| ", re.sub(r"^(at )?\d+\(\d+\): ", "", error.strip()))[0]
            raise ValueError(f"Cannot write answers in {self._name}: {reason}")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._continues_last_call(input_ids):
            self._prompt_length = input_ids.shape[1]
            self._rows = [(llguidance.LLMatcher(self._vocabulary, self._grammar), []) for _ in input_ids]
        self._last_ids = input_ids
        answers = input_ids[:, self._prompt_length :].tolist()
        masks = [self._allowed(row, tokens) for row, tokens in zip(self._rows, answers, strict=True)]
        # llguidance rounds the length of a mask up to a multiple of 32.
        allowed = torch.from_numpy(np.stack(masks)[:, : scores.shape[1]]).to(scores.device)
        masked = scores.masked_fill(~allowed, -torch.inf)
        if (masked.amax(dim=1) == -torch.inf).any():
            raise ValueError(
                f"Another setting of generation forbids all tokens that can follow in {self._name}; look at "
                "`suppress_tokens`, `min_new_tokens`, `bad_words_ids` and other logits processors."
            )
        return masked

    def parse(self, text: str) -> Any:
        """
        Checks an answer and reads it.

        Args:
            text (`str`): the decoded answer, without special tokens. One space at its start is dropped, unless the
                format asks for it.

        Returns:
            `Any`: the value of a JSON answer, the text of others.

        Raises:
            ValueError: if `max_new_tokens` or a stop string cut the answer, or if it is not in this format at all.
        """
        is_complete, wrong = self._check(text, self._grammar)
        # A cut within a character leaves bytes of it, which are decoded to U+FFFD.
        if wrong and self._check(text.rstrip("\ufffd"), self._grammar)[1]:
            raise ValueError(f"The answer {text!r} is not in {self._name}: it cannot go on with {wrong!r}.")
        if not is_complete:
            raise ValueError(
                f"The answer was cut before its end, {text!r}; increase `max_new_tokens`, or limit the length in "
                f"{self._name}."
            )
        without_space = text.removeprefix(" ")
        return self._read(without_space if self._check(without_space, self._grammar_without_space)[0] else text)

    def _check(self, text: str, grammar: str) -> tuple[bool, str]:
        """Whether a text follows the grammar to its end, and the part of it that cannot follow what is before it."""
        matcher, tokens = llguidance.LLMatcher(self._vocabulary, grammar), self._vocabulary.greedy_tokenize(text)
        wrong = self._vocabulary.decode_str(tokens[matcher.try_consume_tokens(tokens) :])
        return matcher.is_accepting() and not wrong, wrong

    def _continues_last_call(self, input_ids: torch.Tensor) -> bool:
        """
        Whether each row is the beginning of a row of the last step, and one more token. Beam search changes the order
        of rows, assisted decoding goes back.
        """
        length = input_ids.shape[1]
        if self._last_ids is None or not self._prompt_length < length <= self._last_ids.shape[1] + 1:
            return False
        is_same = input_ids[:, None, :-1] == self._last_ids[None, :, : length - 1]
        return bool(is_same.all(dim=2).any(dim=1).all())

    def _allowed(self, row: tuple[llguidance.LLMatcher, list[int]], tokens: list[int]) -> np.ndarray:
        """The tokens that may follow these, as flags. The matcher of the row has read similar ones before."""
        matcher, consumed = row
        same = sum(takewhile(bool, map(eq, tokens, consumed)))
        matcher.rollback(len(consumed) - same)
        del consumed[same:]
        added = matcher.try_consume_tokens(tokens[same:])
        consumed += tokens[same : same + added]
        flags = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little").view(bool)
        if len(consumed) < len(tokens):
            # After the end of an answer, and in beams that search has given up (score -inf).
            flags[:] = False
            flags[self._vocabulary.eos_tokens] = True
        return flags


__all__ = ["AnswerFormat", "AnswerFormats"]
