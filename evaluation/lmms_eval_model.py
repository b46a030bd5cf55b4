# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The model `jvlm` of lmms-eval: `lmms-eval --model jvlm --model_args pretrained=ID --tasks ...`."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

import jvlm  # registers the classes
from jvlm.processing.prompt_inputs import prompt_inputs

from .answer_file import AnswerFile
from .fingerprint import files_of


logger = logging.get_logger(__name__)


class JinaVLM(lmms):
    """
    A JinaVLM checkpoint behind lmms-eval's interface for chat models.

    Args:
        pretrained (`str`): folder or Hub id of a checkpoint, in the format of this package or as published.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        device (`str`, *optional*): by default the accelerator of this process if there is one, else the CPU.
        dtype (`str`, *optional*): by default float32 on a CPU and that of the checkpoint elsewhere.
        attn_implementation (`str`, *optional*): attention backend of Transformers.
        max_crops (`int`, *optional*): maximum number of tiles of an image, by default that of the processor.
        batch_size (`int`, *optional*, defaults to 1): conversations per call of `generate`.
        max_new_tokens (`int`, *optional*, defaults to 1024): for tasks that do not set it.
        answers (`str`, *optional*): JSONL file to which every answer is appended at once. A later run with the same
            file takes answers from it whose checkpoint, settings, messages and images are the same. With several
            processes each has a file of its own, with the number of the process in its name.

    Raises:
        ValueError: if `batch_size` is not a positive integer.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        max_crops: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_new_tokens: int = 1024,
        answers: str | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"`batch_size` must be a positive integer, got {batch_size!r}.")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = torch.device(device) if device and self.world_size == 1 else self.accelerator.device
        self.batch_size = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self.images_kwargs: dict[str, Any] = {} if max_crops is None else {"max_crops": max_crops}
        self.processor = AutoProcessor.from_pretrained(pretrained, revision=revision)
        self.model = AutoModelForImageTextToText.from_pretrained(
            pretrained,
            revision=revision,
            dtype=dtype or ("float32" if self.device.type == "cpu" else "auto"),
            attn_implementation=attn_implementation,
        ).to(self.device)
        self.answers = None
        if answers is not None:
            path = Path(answers)
            path = path if self.world_size == 1 else path.with_stem(f"{path.stem}-{self.rank}")
            self.answers = AnswerFile(path, [self._identity(pretrained), self.images_kwargs])

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """
        Answers the requests of all tasks, in batches of requests with the same settings of `generate`.

        Raises:
            ValueError: if a message has video or audio.
        """
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(request.args[2], sort_keys=True)].append(index)
        results: dict[int, GenerationResult] = {}
        progress = logging.tqdm(total=len(requests), desc="Answers", disable=self.rank > 0)
        for indices in groups.values():
            settings, stops = self._settings(requests[indices[0]].args[2])
            file = None if settings["do_sample"] else self.answers
            waiting: list[tuple[int, list[dict], str]] = []
            for index in indices:
                before = len(results)
                messages = self._messages(requests[index])
                key = file.key(messages, {**settings, "until": stops}) if file else ""
                if file and (found := file.get(key)):
                    results[index] = _result(*found)
                else:
                    waiting.append((index, messages, key))
                if waiting and (len(waiting) == self.batch_size or index == indices[-1]):
                    answers = self._generate([messages for _, messages, _ in waiting], settings, stops)
                    for (place, _, key), answer in zip(waiting, answers, strict=True):
                        results[place] = _result(*answer)
                        if file:
                            file.append(key, *answer)
                    waiting = []
                progress.update(len(results) - before)
        progress.close()
        return [results[index] for index in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "lmms-eval has no chat interface for likelihoods. Choose a task that generates answers, or lm-eval's "
            "model `hf-multimodal`."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("Tasks with several rounds are not supported by the model `jvlm`.")

    def _identity(self, pretrained: str) -> list:
        """What tells one checkpoint and its numerics from another, for the file of answers."""
        config = self.model.config
        checkpoint = files_of(pretrained) or [pretrained, getattr(config, "_commit_hash", None)]
        versions = [jvlm.__version__, transformers.__version__, torch.__version__]
        return [checkpoint, versions, str(self.model.dtype), self.device.type, config._attn_implementation]

    def _settings(self, kwargs: dict) -> tuple[dict, list[str]]:
        """The arguments of `generate` and the stop sequences for the generation arguments of a task."""
        settings = {"max_new_tokens": self.max_new_tokens, **kwargs}
        until = settings.pop("until", None) or []
        for name in [name for name in settings if not hasattr(self.model.generation_config, name)]:
            logger.warning_once(f"`{name}` of the task's generation arguments is no argument of `generate`. Ignored.")
            del settings[name]  # tasks have arguments for other models, such as LLaVA's `image_aspect_ratio`
        # The harness adds "\n\n", its delimiter of examples, to every task. Its chat models do not stop there.
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop.strip()]
        if not settings.get("do_sample", (settings.get("temperature") or 0) > 0) or settings.get("temperature") == 0:
            settings |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        else:
            settings["do_sample"] = True
        return settings, stops

    def _messages(self, request: Instance) -> list[dict]:
        """The conversation of a request, in the format of chat templates, with loaded images."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).to_hf_messages()
        for part in (part for message in messages for part in message["content"]):
            if part["type"] == "image":
                part["image"] = self.processor.image_processor.fetch_images(part["image"])
            elif part["type"] != "text":
                raise ValueError(f"Row {doc_id} of the task {task} has {part['type']}. JinaVLM takes images and text.")
        return messages

    @torch.no_grad()
    def _generate(self, conversations: list[list[dict]], settings: dict, stops: list[str]) -> list[tuple[str, int]]:
        """An answer and its number of tokens for each conversation."""
        padding = {"padding": True, "padding_side": "left"}
        inputs = prompt_inputs(self.processor, conversations, **padding, **self.images_kwargs)
        inputs = inputs.to(self.device, self.model.dtype)
        stopping = {"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}
        output = self.model.generate(**inputs, **settings, **stopping)[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(output, skip_special_tokens=True)
        lengths = (output != self.tokenizer.pad_token_id).sum(dim=1).tolist()
        for stop in stops:
            texts = [text.split(stop)[0] for text in texts]
        return list(zip(texts, lengths, strict=True))


def _result(text: str, tokens: int) -> GenerationResult:
    return GenerationResult(text=text, token_counts=TokenCounts(output_tokens=tokens))


__all__ = ["JinaVLM"]
