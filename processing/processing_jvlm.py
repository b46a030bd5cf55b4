# Copyright 2026 The jvlm authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Processor of JinaVLM: images and prompts to model inputs."""

import copy
import os
import re
from typing import Any, Unpack

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from transformers.image_utils import ImageInput, make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin
from transformers.tokenization_utils_base import TextInput
from transformers.utils import auto_docstring

from ..configuration.checkpoint_files import name_damaged_file
from ..configuration.config_files import KINDS, check_config_files
from ..published_format.published_schema import read_processor
from ..published_format.published_template import read_template
from .prompt_checks import check_call, check_chat, check_placeholder, name_template
from .prompt_format import CHAT_TEMPLATES, EXPANDED_IMAGE_TOKENS, IMAGE_PLACEHOLDER, add_image_tokens
from .thread_safety import SerialTokenizer, own_template


@auto_docstring(
    custom_intro="""
    Combines a [`JinaVLMImageProcessor`] and any tokenizer of Transformers.

    Each `<|image|>` in a prompt is replaced by the tokens of its image, one contiguous span. If a prompt has images
    but no `<|image|>`, the images are placed at its start. Missing image tokens are added to the tokenizer, see
    [`add_image_tokens`]. `chat_template` defaults to the template of the image processor's layout.
    """
)
class JinaVLMProcessor(ProcessorMixin):
    r"""
    Raises:
        ValueError: if the numbers of images and placeholders differ, if a prompt contains expanded image tokens or an
            unpaired surrogate, or if truncation cuts the tokens of an image. The message names the prompt and a fix.
            `__init__` raises it if the tokenizer has no EOS token.
    """

    # Needed to expand the prompt, but not an input of the model.
    unused_input_names = ["image_grids"]

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, add_bos_token=False):
        r"""
        add_bos_token (`bool`, *optional*, defaults to `False`):
            Whether to start every sequence with the tokenizer's BOS token, or with its EOS token if it has no BOS
            token. The published checkpoint was trained with this token.
        """
        if tokenizer.eos_token is None:
            raise ValueError(
                "The tokenizer has no EOS token, which ends answers; set `tokenizer.eos_token`, in a checkpoint in "
                "tokenizer_config.json."
            )
        add_image_tokens(tokenizer)
        self.add_bos_token = add_bos_token
        self.image_token = IMAGE_PLACEHOLDER
        self.image_token_id = tokenizer.convert_tokens_to_ids("<im_patch>")
        self.image_token_ids = tokenizer.convert_tokens_to_ids(EXPANDED_IMAGE_TOKENS)
        chat_template = chat_template or CHAT_TEMPLATES[image_processor.layout]
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        r"""
        See [`~ProcessorMixin.from_pretrained`]. Overridden to name a damaged file of the folder.

        Raises:
            ValueError: if a file is damaged or has a wrong value; the message names it.
        """
        folder = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        check_config_files(folder, *KINDS)
        with name_damaged_file(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict[str, Any], **kwargs):
        """Also reads a dict in the published schema, so that `from_pretrained` loads the published checkpoint."""
        settings = read_processor(processor_dict)
        if settings is not processor_dict:
            # The published tokenizer config refers to code files that `save_pretrained` does not copy.
            args[1].init_kwargs.pop("auto_map", None)
            args[1].chat_template = read_template(args[1].chat_template)
        return super().from_args_and_dict(args, settings, **kwargs)

    @auto_docstring
    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        **kwargs: Unpack[ProcessingKwargs],  # type: ignore[misc]  # vLLM reads the annotation
    ):
        r"""
        Returns:
            [`BatchFeature`]: the inputs of the model. Threads may share a processor, whatever their padding and
            truncation.
        """
        processor = copy.copy(self)
        processor.tokenizer = SerialTokenizer(self.tokenizer)
        return super(JinaVLMProcessor, processor).__call__(images=images, text=text, **kwargs)

    def apply_chat_template(self, conversation, chat_template=None, *args, **kwargs):
        """
        See [`~ProcessorMixin.apply_chat_template`].

        Raises:
            ValueError: for a message that the template would write incompletely or not at all, for an unknown keyword,
                and for a template that cannot be rendered. The message has the index of the message and a fix.
        """
        templates = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        template = templates.get(chat_template or "default", chat_template)
        check_chat(self, conversation, str(template), kwargs)
        if template is not None and kwargs.get("return_assistant_tokens_mask"):
            template = own_template(template)
        with name_template():
            return super().apply_chat_template(conversation, template, *args, **kwargs)

    def prepare_inputs_layout(self, images: ImageInput | None = None, text=None, videos=None, audio=None, **kwargs):
        """Also checks all arguments, groups images by prompt, and adds placeholders to prompts with images only."""
        text = check_call(self, images, text, {"videos": videos, "audio": audio, **kwargs})
        images, text, *others = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        if isinstance(images, list) and all(isinstance(row, list) and not row for row in images):
            images = None  # Transformers expects None if there are no images.
        if images is None or text is None:
            return images, text, *others
        is_nested = isinstance(images, list) and all(isinstance(row, list) for row in images)
        if len(text) == 1 and not is_nested:
            images, is_nested = [make_flat_list_of_images(images)], True
        return images, self._add_placeholders(text, images) if is_nested else text, *others

    def _add_placeholders(self, text: list[str], images: list[list]) -> list[str]:
        """
        Puts a placeholder for each image at the start of prompts without placeholders.

        Raises:
            ValueError: if the numbers of prompts and image lists differ, or the numbers of placeholders and images.
        """
        if len(images) != len(text):
            raise ValueError(
                f"Got {len(images)} lists of images for {len(text)} prompts. The number of {self.image_token} tokens "
                "in the prompts should be the same as the number of images; pass one list per prompt, empty for none."
            )
        for index, prompt_images in enumerate(images):
            count = text[index].count(self.image_token)
            if prompt_images:
                check_placeholder(index, text[index])
            if count == 0:
                text[index] = self.image_token * len(prompt_images) + text[index]
            elif count != len(prompt_images):
                raise ValueError(
                    f"Prompt {index} has {count} {self.image_token} but {len(prompt_images)} images; write one "
                    f"{self.image_token} per image, or none to put the images at the start of the prompt."
                )
        return text

    def validate_inputs(self, images: ImageInput | None = None, text=None, **kwargs):
        """Also rejects an empty list, expanded image tokens and unpaired surrogates, and names the prompt."""
        super().validate_inputs(images=images, text=text, **kwargs)
        if text is not None:
            self.check_prompts(text, 0 if images is None else len(make_flat_list_of_images(images)))

    def check_prompts(self, text: list[str], num_images: int) -> None:
        """Raises a `ValueError` unless the prompts have one placeholder per image and nothing that is reserved."""
        # Transformers checks the numbers itself since 5.21.
        num_placeholders = sum(prompt.count(self.image_token) for prompt in text)
        if num_placeholders != num_images:
            found = f"{num_images} images" if num_images else "no images were passed"
            raise ValueError(
                f"The prompts have {num_placeholders} {self.image_token} tokens in the text but {found}. The number "
                f"of {self.image_token} tokens in the prompts should be the same as the number of images."
            )
        if not text:
            raise ValueError("`text` is an empty list; pass at least one prompt.")
        for index, prompt in enumerate(text):
            if surrogate := re.search("[\ud800-\udfff]", prompt):
                raise ValueError(
                    f"Prompt {index} contains {surrogate[0]!r}, an unpaired surrogate; remove it, for example with "
                    '`text.encode(errors="ignore").decode()`.'
                )
            if reserved := [token for token in EXPANDED_IMAGE_TOKENS if token in prompt]:
                raise ValueError(
                    f"Prompt {index} contains {reserved[0]!r}, which is reserved for the processor; mark the position "
                    f"of an image with {self.image_token!r}."
                )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The text that replaces the placeholder of the image with index `image_idx`."""
        grid = tuple(int(count) for count in image_inputs["image_grids"][image_idx])
        geometry = self.image_processor.geometry(kwargs)
        positions = np.asarray(image_inputs["image_token_positions"])
        thumbnail = np.flatnonzero(positions[:, 0] == 0)[image_idx]
        positions = positions[thumbnail : thumbnail + 1 + grid[0] * grid[1]]
        if geometry.layout == "independent":
            return "<im_patch>" * int((positions >= 0).sum())
        return "".join(
            "<im_start>" + "".join("<im_patch>" * length + "<im_col>" for length in lengths) + "<im_end>"
            for lengths in geometry.row_lengths(grid, positions)
        )

    def with_bos_token(self, prompt: str) -> str:
        """The prompt, with the BOS token at its start if `add_bos_token` is set and the prompt lacks it."""
        bos_token = self.tokenizer.bos_token or self.tokenizer.eos_token
        return bos_token + prompt if self.add_bos_token and not prompt.startswith(bos_token) else prompt

    def get_text_with_replacements(self, text: list[str], *args, **kwargs) -> tuple[list[str], list[list[dict]]]:
        """Also prepends the BOS token (`add_bos_token`), and counts it in the offsets that assistant masks need."""
        text, offsets = super().get_text_with_replacements(text, *args, **kwargs)
        for index, prompt in enumerate(text):
            text[index] = self.with_bos_token(prompt)
            if bos_token := text[index].removesuffix(prompt):
                for entry in offsets[index]:
                    entry["new_span"] = tuple(offset + len(bos_token) for offset in entry["new_span"])
                entry = {"type": "text", "span": (0, 0), "new_span": (0, len(bos_token))}
                offsets[index].insert(0, {**entry, "text": "", "replacement": bos_token})
        return text, offsets

    def _merge_kwargs(self, *args, **kwargs):
        """Also checks values, and keeps the tokenizer from adding a second BOS token after `add_bos_token`."""
        try:
            merged = super()._merge_kwargs(*args, **kwargs)
        except (StrictDataclassError, TypeError) as error:
            self.image_processor.get_image_grids([], {**kwargs, **kwargs.get("images_kwargs", {})})  # names its own
            reason = " ".join(str(error).split())
            raise ValueError(f"An argument of the processor has a wrong value: {reason}") from error
        if merged["text_kwargs"].get("is_split_into_words"):
            raise ValueError("`is_split_into_words` would join the prompts to one; pass whole prompts without it.")
        if self.add_bos_token:
            merged["text_kwargs"]["add_special_tokens"] = False
        return merged

    def _check_special_mm_tokens(self, text: list[str], text_inputs, modalities: list[str]):
        """Counts the expanded tokens, as `image_token` is only the placeholder; raises if truncation cut an image."""
        for index, (sample, input_ids) in enumerate(zip(text, text_inputs["input_ids"], strict=False)):
            expected = sum(map(sample.count, EXPANDED_IMAGE_TOKENS))
            found = int(np.isin(np.asarray(input_ids), self.image_token_ids).sum())
            if found != expected:
                raise ValueError(
                    f"Truncation would cut the images of prompt {index}: {found} of their {expected} tokens are left. "
                    "Increase `max_length`, decrease `max_crops`, or disable truncation."
                )

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs) -> MultiModalData:
        """
        Computes the numbers of tokens and tiles of images from their sizes.

        Args:
            image_sizes (`list[list[int]]`, *optional*): height and width of each image, in pixels.

        Returns:
            `MultiModalData`: per image, `num_image_tokens`, the number of its tokens including markers, and
            `num_image_patches`, the number of its tiles including the thumbnail. With `drop_uniform_cells`, both are
            upper bounds.
        """
        if image_sizes is None:
            return MultiModalData()
        images_kwargs = {**kwargs, **kwargs.get("images_kwargs", {})}
        image_sizes = list(image_sizes)
        num_tokens = self.image_processor.get_num_image_tokens(image_sizes, images_kwargs)
        num_tiles = [
            1 + rows * cols for rows, cols in self.image_processor.get_image_grids(image_sizes, images_kwargs)
        ]
        return MultiModalData(num_image_tokens=num_tokens, num_image_patches=num_tiles)


__all__ = ["JinaVLMProcessor"]
