# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Several questions about the same images, which the model reads once."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin
from transformers.cache_utils import DynamicLayer
from transformers.utils import ModelOutput

from .cache_argument import cache_argument
from .processing.prompt_inputs import prompt_inputs


_QUESTION = "?"  # a stand-in, for the prompt that the images begin
_TENSORS, _SETTINGS = "cache.safetensors", "cache.json"


class PrefixCache:
    r"""
    The start of a prompt up to the end of its images, and the keys and values of its tokens in every layer: what
    vision tower, connector and language model make of images before a question is known. A question then costs what
    its own tokens cost. Questions do not change the object, so threads may share it as far as they may share a model.

    Args:
        model ([`JinaVLMForConditionalGeneration`]): the model.
        processor ([`JinaVLMProcessor`]): its processor.
        images (an image or a `list` of images): the images of one message, as the processor takes them.
        system (`str`, *optional*): a system message before them.
        **images_kwargs: arguments of the image processor, such as `max_crops`.

    Attributes:
        input_ids (`torch.LongTensor` of shape `(1, prefix_tokens)`): the tokens of the prefix.
        states (`list[tuple[torch.Tensor, torch.Tensor]]`): keys and values of every layer, each of shape
            `(1, num_key_value_heads, prefix_tokens, head_dim)`.

    Raises:
        ValueError: if there are no images or they cannot be read, or the model has layers whose attention does not
            reach all earlier tokens.

    Example:

    ```python
    >>> from jvlm import PrefixCache

    >>> pages = PrefixCache(model, processor, ["photo.jpg"])
    >>> output = pages.generate("What is in this image?", max_new_tokens=64)
    >>> print(pages.answer("Which colour is it?", max_new_tokens=64))
    >>> pages.save_pretrained("photo-cache")
    >>> pages = PrefixCache.from_pretrained("photo-cache", model, processor)
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        images: Any,
        system: str | None = None,
        **images_kwargs: Any,
    ):
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        if not images:
            raise ValueError("`images` is empty; a prefix cache is for questions about images.")
        self.model, self.processor = model, processor
        self.num_images, self.system = len(images), system
        inputs = prompt_inputs(processor, self._messages(_QUESTION, images), **images_kwargs)
        inputs = inputs.to(model.device, model.dtype)
        prompt = inputs.pop("input_ids")
        is_image = torch.isin(prompt[0], torch.tensor(processor.image_token_ids, device=prompt.device))
        length = int(is_image.nonzero()[-1]) + 1
        self.input_ids = prompt[:, :length]
        self.text = self._render(_QUESTION).rpartition(processor.image_token)[0]
        if not torch.equal(self._input_ids(_QUESTION), prompt):
            raise ValueError("The tokenizer joins what follows an image with it, so that no prefix can be kept.")
        inputs.pop("attention_mask")
        cache = DynamicCache(config=model.config)
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            raise ValueError("The model has layers whose attention does not reach all earlier tokens.")
        with torch.no_grad():
            model(input_ids=self.input_ids, **inputs, **{cache_argument(): cache}, use_cache=True, logits_to_keep=1)
        self.states = [(layer.keys, layer.values) for layer in cache.layers]

    def generate(self, question: str | list[dict], **kwargs: Any) -> torch.Tensor | ModelOutput:
        r"""
        What `model.generate` returns for the images and a question.

        Args:
            question (`str` or `list[dict]`): a question about the images; or a conversation, in the format of chat
                templates, whose first message is about them and which has no other images.
            **kwargs: further arguments of [`~GenerationMixin.generate`].

        Returns:
            `torch.LongTensor` of shape `(sequences, length)`, the prompt included, or a `ModelOutput`, as the
            arguments ask for.

        Raises:
            ValueError: if the conversation has images or begins with another role than the user's.
        """
        input_ids = self._input_ids(question)
        config = kwargs.get("generation_config") or self.model.generation_config
        num_beams, num_answers = (
            kwargs.get(name) or getattr(config, name) or 1 for name in ("num_beams", "num_return_sequences")
        )
        cache = self.new_cache()
        # `generate` repeats the prompt, but not a cache that it is given.
        if (num_sequences := max(num_beams, num_answers)) > 1:
            for layer in cache.layers:
                layer.batch_repeat_interleave(num_sequences)
        attention_mask = torch.ones_like(input_ids)
        return self.model.generate(
            input_ids=input_ids, attention_mask=attention_mask, **{cache_argument(): cache}, **kwargs
        )

    def answer(self, question: str | list[dict], **kwargs: Any) -> str:
        """The text of an answer. The arguments are those of [`~PrefixCache.generate`]."""
        output = self.generate(question, **kwargs)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        num_prompt_tokens = self._input_ids(question).shape[1]
        return self.processor.decode(sequences[0, num_prompt_tokens:], skip_special_tokens=True).strip()

    def new_cache(self) -> DynamicCache:
        """A cache of Transformers that holds the prefix. It shares no memory that `generate` changes."""
        return DynamicCache(self.states)

    def save_pretrained(self, save_directory: str | Path) -> None:
        r"""
        Writes the prefix to a new folder, which is complete or absent: `cache.safetensors` and `cache.json`.

        Raises:
            FileExistsError: if the folder exists.
        """
        from .conversion_scripts.output_folder import new_folder  # a Space does not have it

        num_bytes = sum(states.nbytes for layer in self.states for states in layer)
        with new_folder(save_directory, num_bytes) as folder:
            tensors = {
                f"layers.{index}.{name}": states.contiguous().cpu()
                for index, layer in enumerate(self.states)
                for name, states in zip(("keys", "values"), layer, strict=True)
            }
            save_file({"input_ids": self.input_ids.cpu(), **tensors}, folder / _TENSORS)
            settings = {"num_images": self.num_images, "system": self.system, "text": self.text}
            settings |= _identity(self.model, self.processor)
            (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, model: PreTrainedModel, processor: ProcessorMixin) -> "PrefixCache":
        r"""
        Loads what [`~PrefixCache.save_pretrained`] wrote. All weights of the model are compared by their hash.

        Args:
            folder (`str` or `Path`): the folder.
            model ([`JinaVLMForConditionalGeneration`]): the model that the prefix was made with.
            processor ([`JinaVLMProcessor`]): its processor.

        Raises:
            OSError: if the folder has no such files.
            ValueError: if a file is damaged, or if weights, dtype or settings of the model, the processor or the
                prompt differ from those that the prefix was made with. The message names what differs.
        """
        try:
            settings = json.loads(Path(folder, _SETTINGS).read_text(encoding="utf-8"))
            with safetensors.safe_open(Path(folder, _TENSORS), "pt", device=str(model.device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            cache = cls.__new__(cls)
            cache.model, cache.processor = model, processor
            cache.num_images, cache.system, cache.text = (
                settings.pop(name) for name in ("num_images", "system", "text")
            )
            cache.input_ids = tensors.pop("input_ids")
            num_layers = len(tensors) // 2
            cache.states = [
                (tensors[f"layers.{index}.keys"], tensors[f"layers.{index}.values"]) for index in range(num_layers)
            ]
        except (KeyError, ValueError, AttributeError, safetensors.SafetensorError) as error:
            raise ValueError(f"{folder} is damaged ({type(error).__name__}: {error}); make it again.") from error
        identity = _identity(model, processor)
        different = [name for name in identity if identity[name] != settings.get(name)]
        if not cache._render(_QUESTION).startswith(cache.text):
            different.append("prompt prefix")
        if different:
            raise ValueError(
                f"{folder} was made for other settings or weights, so its answers would be wrong: it differs in "
                f"{', '.join(different)}. Make it again with this model and processor."
            )
        return cache

    def _messages(self, question: str | list[dict], images: Sequence | None = None) -> list[dict]:
        """The conversation with the images, or with their places, at the start of its first message."""
        messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
        if not all(
            isinstance(message, dict) and isinstance(message.get("content"), (str, list)) for message in messages
        ):
            raise ValueError(f"A question is a text or a list of messages, got {repr(question)[:60]}.")
        contents = [message["content"] for message in messages]
        parts = [part for content in contents if not isinstance(content, str) for part in content]
        if any(part.get("type") != "text" for part in parts) or not messages or messages[0].get("role") != "user":
            raise ValueError(
                "A question is a text or a conversation that begins with the user and has no images: those of the "
                "prefix cache belong to its first message. For other images, make another `PrefixCache`."
            )
        first = contents[0]
        first = [{"type": "text", "text": first}] if isinstance(first, str) else list(first)
        places: list[dict] = [{"type": "image"}] * self.num_images
        if images is not None:
            places = [{"type": "image", "image": image} for image in images]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {**messages[0], "content": [*places, *first]}, *messages[1:]]

    def _render(self, question: str | list[dict]) -> str:
        text = self.processor.apply_chat_template(self._messages(question), add_generation_prompt=True, tokenize=False)
        self.processor.check_prompts([text], self.num_images)
        return text

    def _input_ids(self, question: str | list[dict]) -> torch.Tensor:
        """The tokens of a prompt, `[1, sequence]`. What follows the images has tokens of its own."""
        rest = self._render(question).rpartition(self.processor.image_token)[2]
        tokens = self.processor.tokenizer(rest, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return torch.cat([self.input_ids, tokens.to(self.input_ids)], dim=1)


def _identity(model: PreTrainedModel, processor: ProcessorMixin) -> dict[str, Any]:
    """What the keys and values depend on, by the names that an error uses."""
    settings = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures", "dtype"):
        settings.pop(name, None)
    images = processor.image_processor.to_dict()
    prompt = [processor.chat_template, processor.add_bos_token, processor.tokenizer.get_vocab()]
    return {
        "dtype": str(model.dtype),
        "configuration": _hash(settings),
        "image processor": _hash(images),
        "chat template or vocabulary": _hash(prompt),
        "model weights": _hash_weights(model),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _hash_weights(model: PreTrainedModel) -> str:
    """The hash of all weights, which is computed in several threads."""

    def hash_one(item: tuple[str, torch.Tensor]) -> list[str]:
        name, weight = item
        data = weight.detach().flatten().contiguous().view(torch.uint8).cpu().numpy().data
        return [name, str(list(weight.shape)), hashlib.sha256(data).hexdigest()]

    with ThreadPoolExecutor() as pool:
        return _hash(list(pool.map(hash_one, model.state_dict().items())))


__all__ = ["PrefixCache"]
