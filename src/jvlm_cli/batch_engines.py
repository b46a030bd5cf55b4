# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""What answers the batches of `jvlm batch`: Transformers or vLLM."""

from typing import Any

import torch

from .answering import Answerer
from .batch_rows import Row, RowBatch


class TransformersEngine:
    """
    `generate` of a model.

    Args:
        answerer ([`Answerer`]): the model and its processor.
    """

    def __init__(self, answerer: Answerer):
        self.answerer = answerer
        self.end_tokens = torch.tensor(answerer.end_tokens)

    def __call__(self, batch: RowBatch) -> list[dict]:
        """The results of the rows of a batch: `answer`, `num_image_tokens` and `finish_reason`."""
        answerer, inputs = self.answerer, batch.inputs
        assert inputs is not None
        image_tokens = torch.tensor(answerer.processor.image_token_ids)
        counts = torch.isin(inputs["input_ids"], image_tokens).sum(dim=1).tolist()
        num_prompt_tokens = inputs["input_ids"].shape[1]
        output = answerer.model.generate(
            **inputs.to(answerer.model.device, answerer.model.dtype),
            do_sample=False,
            max_new_tokens=answerer.max_new_tokens,
        )[:, num_prompt_tokens:].cpu()
        texts = answerer.processor.batch_decode(output, skip_special_tokens=True)
        is_complete = torch.isin(output, self.end_tokens).any(dim=1).tolist()
        return [
            _result(text, count, "stop" if ends else "length")
            for text, count, ends in zip(texts, counts, is_complete, strict=True)
        ]


class VllmEngine:
    """
    vLLM, in this process or in those that it starts.

    Args:
        model (`str`): folder or Hub id.
        processor ([`JinaVLMProcessor`]): the processor of the model.
        max_new_tokens (`int`): maximum length of an answer.
        vllm_args (`dict`): arguments of `vllm.LLM`.

    Raises:
        ValueError: if vLLM is not installed.
    """

    def __init__(self, model: str, processor: Any, max_new_tokens: int, vllm_args: dict[str, Any]):
        try:
            from vllm import LLM, SamplingParams
        except ModuleNotFoundError as error:
            raise ValueError(
                "--engine vllm needs vLLM 0.32, with this package in the environment of vLLM: see docs/serving.md."
            ) from error
        self.image_tokens = set(processor.image_token_ids)
        self.sampling = SamplingParams(temperature=0, max_tokens=max_new_tokens)
        self.model = LLM(model=model, **vllm_args)

    def __call__(self, batch: RowBatch) -> list[dict]:
        """The results of the rows of a batch: `answer`, `num_image_tokens` and `finish_reason`, or `error`."""
        try:
            return self._answer(batch.rows)
        except ValueError:  # vLLM refuses all of them for one
            results = []
            for row in batch.rows:
                try:
                    results += self._answer([row])
                except ValueError as error:
                    results.append({"error": " ".join(str(error).split())})
            return results

    def _answer(self, rows: list[Row]) -> list[dict]:
        outputs = self.model.chat([_for_vllm(row.messages) for row in rows], self.sampling, use_tqdm=False)
        return [
            _result(
                output.outputs[0].text,
                sum(token in self.image_tokens for token in output.prompt_token_ids),
                output.outputs[0].finish_reason,
            )
            for output in outputs
        ]


def _for_vllm(messages: list[dict]) -> list[dict]:
    """Messages with loaded images, in the schema of vLLM."""
    return [
        {
            **message,
            "content": [
                {"type": "image_pil", "image_pil": part["image"]} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _result(text: str, num_image_tokens: int, finish_reason: str) -> dict:
    return {"answer": text.strip(), "num_image_tokens": num_image_tokens, "finish_reason": finish_reason}
