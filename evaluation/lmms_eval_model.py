# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The model `jvlm` of lmms-eval: `lmms-eval --model jvlm --model_args pretrained=ID --tasks ...`."""

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import transformers
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

import jvlm  # registers the classes


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
            self.answers = AnswerFile(path, [*self._identity(pretrained), self.images_kwargs])

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """
        Answers the requests of all tasks, in batches of requests with the same settings of `generate`.

        Raises:
            ValueError: if a message has video or audio, or `generate` does not know a setting.
        """
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(request.args[2], sort_keys=True)].append(index)
        results: list[GenerationResult | None] = [None] * len(requests)
        progress = logging.tqdm(total=len(requests), desc="Answers", disable=self.rank > 0)
        for indices in groups.values():
            settings, stops = self._settings(requests[indices[0]].args[2])
            waiting: list[tuple[int, list[dict], str]] = []
            for number, index in enumerate(indices, start=1):
                messages = self._messages(requests[index])
                key = self.answers.key(messages, settings, stops) if self.answers else ""
                if self.answers and not settings["do_sample"] and key in self.answers:
                    results[index] = self.answers[key]
                    progress.update()
                else:
                    waiting.append((index, messages, key))
                if waiting and (len(waiting) == self.batch_size or number == len(indices)):
                    found = self._generate([messages for _, messages, _ in waiting], settings, stops)
                    for (index, _, key), result in zip(waiting, found, strict=True):
                        results[index] = result
                        if self.answers and not settings["do_sample"]:
                            self.answers.append(key, result)
                    progress.update(len(waiting))
                    waiting = []
        progress.close()
        return results

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "lmms-eval has no chat interface for likelihoods. Choose a task that generates answers, or lm-eval's "
            "model `hf-multimodal`."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("Tasks with several rounds are not supported by the model `jvlm`.")

    def _identity(self, pretrained: str) -> list:
        """What tells one checkpoint and its numerics from another, for the file of answers."""
        files = sorted(Path(pretrained).iterdir()) if Path(pretrained).is_dir() else []
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        versions = [jvlm.__version__, transformers.__version__, torch.__version__]
        config = self.model.config
        numerics = [str(self.model.dtype), self.device.type, config._attn_implementation]
        return [stats or [pretrained, getattr(config, "_commit_hash", None)], versions, numerics]

    def _settings(self, kwargs: dict) -> tuple[dict, list[str]]:
        """The arguments of `generate` and the stop sequences for the generation arguments of a task."""
        settings = {"max_new_tokens": self.max_new_tokens, **kwargs}
        until = settings.pop("until", None) or []
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
    def _generate(self, conversations: list[list[dict]], settings: dict, stops: list[str]) -> list[GenerationResult]:
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left", **self.images_kwargs},
        ).to(self.device, self.model.dtype)
        stopping = {"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}
        output = self.model.generate(**inputs, **settings, **stopping)[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(output, skip_special_tokens=True)
        lengths = (output != self.model.generation_config.pad_token_id).sum(dim=1).tolist()
        results = []
        for text, length in zip(texts, lengths, strict=True):
            for stop in stops:
                text = text.split(stop)[0]
            results.append(GenerationResult(text=text, token_counts=TokenCounts(output_tokens=length)))
        return results


class AnswerFile:
    """
    Answers by the hash of what was asked, in a JSONL file. A line is written in one piece before the next batch is
    generated. What an interrupted run left of a line is deleted.

    Args:
        path (`Path`): the file; its folder is made if needed.
        identity (`list`): what is part of every hash, as JSON.
    """

    def __init__(self, path: Path, identity: list):
        self.identity = json.dumps(identity)
        self.found: dict[str, GenerationResult] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab+")
        self.file.seek(0)
        complete = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            complete += len(line)
            row = json.loads(line)
            counts = TokenCounts(output_tokens=row["tokens"])
            self.found[row["key"]] = GenerationResult(text=row["answer"], token_counts=counts)
        self.file.truncate(complete)

    def __contains__(self, key: str) -> bool:
        return key in self.found

    def __getitem__(self, key: str) -> GenerationResult:
        return self.found[key]

    def key(self, messages: list[dict], settings: dict, stops: list[str]) -> str:
        """The hash of a conversation with the pixels of its images, of the settings, and of the identity."""
        digest = hashlib.sha256(json.dumps([self.identity, settings, stops], sort_keys=True).encode())
        digest.update(json.dumps(messages, default=_image_hash, ensure_ascii=True).encode())
        return digest.hexdigest()

    def append(self, key: str, result: GenerationResult) -> None:
        """Adds an answer. It is in the file when this returns."""
        self.found[key] = result
        tokens = result.token_counts.output_tokens if result.token_counts else None
        line = json.dumps({"key": key, "answer": result.text, "tokens": tokens}, ensure_ascii=False) + "\n"
        self.file.write(line.encode())
        self.file.flush()
        os.fsync(self.file.fileno())


def _image_hash(image: PIL.Image.Image) -> list:
    return [image.mode, image.size, hashlib.sha256(image.tobytes()).hexdigest()]


__all__ = ["AnswerFile", "JinaVLM"]
