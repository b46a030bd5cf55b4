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

import numpy as np
from transformers.image_utils import ImageInput, is_valid_image, make_flat_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.utils import auto_docstring

from ..configuration.checkpoint_files import name_damaged_file
from ..published_format.published_schema import read_processor
from .prompt_format import CHAT_TEMPLATES, IMAGE_PLACEHOLDER, IMAGE_TOKENS, add_image_tokens


@auto_docstring(
    custom_intro="""
    Wraps a [`JinaVLMImageProcessor`] and any tokenizer of Transformers into one processor.

    Every `<|image|>` of a prompt is replaced by the tokens of its image, one contiguous span. A prompt without
    `<|image|>` whose images are given gets them at its very start. Image tokens that the tokenizer lacks are added
    to it, see [`add_image_tokens`]. Without a `chat_template` the one of the image processor's layout is used.
    """
)
class JinaVLMProcessor(ProcessorMixin):
    r"""
    Raises:
        ValueError: if images and placeholders do not match, a prompt contains image tokens itself or half of a
            surrogate pair, or truncation would cut an image's tokens; the message names the prompt and the fix. When
            it is built, if the tokenizer has no EOS token.
    """

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, add_bos_token=False):
        r"""
        add_bos_token (`bool`, *optional*, defaults to `False`):
            Whether every sequence starts with the tokenizer's BOS token, its EOS token where it has none. The
            published checkpoint was trained so.
        """
        if tokenizer.eos_token is None:
            raise ValueError(
                "The tokenizer has no EOS token, with which answers end: set `tokenizer.eos_token`. Checkpoints "
                "have it in tokenizer_config.json."
            )
        add_image_tokens(tokenizer)
        self.add_bos_token = add_bos_token
        self.image_token = IMAGE_PLACEHOLDER
        markers = dict(zip(IMAGE_TOKENS, tokenizer.convert_tokens_to_ids(IMAGE_TOKENS), strict=True))
        del markers[IMAGE_PLACEHOLDER]
        self.image_token_id = markers["<im_patch>"]
        self.image_token_ids = list(markers.values())
        if chat_template is None:
            chat_template = CHAT_TEMPLATES[image_processor.layout]
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        r"""
        Loads a processor, ours or one in the published layout; see [`~ProcessorMixin.from_pretrained`].

        Raises:
            ValueError: if a file of the folder is damaged; the message names it.
        """
        with name_damaged_file(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict, **kwargs):
        """Builds the processor from its parts and a saved dict, ours or one of the published schema."""
        settings = read_processor(processor_dict)
        if settings is not processor_dict:
            for part in args:
                # The published tokenizer config names code files, which a folder that is saved again does not have.
                getattr(part, "init_kwargs", {}).pop("auto_map", None)
        return super().from_args_and_dict(args, settings, **kwargs)

    @property
    def unused_input_names(self) -> list[str]:
        """The grids are needed to build the prompt, not by the model."""
        return ["image_grids"]

    def prepare_inputs_layout(self, images: ImageInput | None = None, text=None, **kwargs):
        """Loads images, nests them by prompt, and gives prompts without a placeholder theirs."""
        images, text, *others = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        if images is None or (isinstance(images, (list, tuple)) and not any(map(_holds_image, images))):
            images = None
        if text is None or not all(isinstance(prompt, str) for prompt in text):
            return images, text, *others
        if images is not None:
            if isinstance(images, (list, tuple)) and all(isinstance(sample, (list, tuple)) for sample in images):
                images = list(images)
            elif len(text) == 1:
                images = [make_flat_list_of_images(images)]
            if isinstance(images, list) and isinstance(images[0], (list, tuple)):
                text = self._add_placeholders(text, images)
        return images, text, *others

    def _add_placeholders(self, text: list[str], images: list[list]) -> list[str]:
        """Prompts with a placeholder for each of their images; those without any get them at their start."""
        if len(images) != len(text):
            raise ValueError(
                f"Got {len(images)} lists of images for {len(text)} prompts; give each prompt one, empty if need be. "
                f"The number of {self.image_token} tokens in the prompts should be the same as the number of images."
            )
        for index, (prompt, prompt_images) in enumerate(zip(text, images, strict=True)):
            if self.image_token not in prompt:
                text[index] = self.image_token * len(prompt_images) + prompt
            elif (num_placeholders := prompt.count(self.image_token)) != len(prompt_images):
                raise ValueError(
                    f"Prompt {index} has {num_placeholders} {self.image_token} but {len(prompt_images)} images. The "
                    f"number of {self.image_token} tokens in the prompts should be the same as the number of images; "
                    "write one for each image, or none to put the images of a prompt at its start."
                )
        return text

    def validate_inputs(self, images: ImageInput | None = None, text=None, **kwargs):
        """Checks also that prompts are not empty, and hold neither image tokens nor halves of surrogate pairs."""
        super().validate_inputs(images=images, text=text, **kwargs)
        if text is not None and not text:
            raise ValueError("`text` is an empty list; give at least one prompt.")
        for index, prompt in enumerate(text or []):
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"Prompt {index} contains {prompt[error.start]!r}, half of a surrogate pair: a character was cut "
                    'in two. Drop it, as `text.encode(errors="ignore").decode()` does.'
                ) from error
            for token in IMAGE_TOKENS:
                if token != self.image_token and token in prompt:
                    raise ValueError(
                        f"Prompt {index} contains {token!r}, which only the processor writes; "
                        f"mark the position of an image with {self.image_token!r}."
                    )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The tokens, as text, that the `image_idx`-th image expands to."""
        grid = tuple(int(count) for count in image_inputs["image_grids"][image_idx])
        geometry = self.image_processor.geometry(kwargs)
        if geometry.layout == "independent":
            return "<im_patch>" * geometry.num_tokens(grid)[0]
        return "".join(
            "<im_start>" + ("<im_patch>" * cols + "<im_col>") * rows + "<im_end>"
            for rows, cols in (geometry.pooled_grid, geometry.stitched_grid(grid))
        )

    def get_text_with_replacements(self, text: list[str], *args, **kwargs) -> tuple[list[str], list[list[dict]]]:
        """Expands the placeholders and prepends the BOS token."""
        text, offsets = super().get_text_with_replacements(text, *args, **kwargs)
        bos_token = self.tokenizer.bos_token or self.tokenizer.eos_token
        for index, prompt in enumerate(text if self.add_bos_token else []):
            if not prompt.startswith(bos_token):
                text[index] = bos_token + prompt
                # Assistant masks follow from these offsets, so the BOS token is one more replacement, of no text.
                inserted = {"type": "text", "span": (0, 0), "text": "", "replacement": bos_token}
                shifted = [
                    {**entry, "new_span": tuple(char + len(bos_token) for char in entry["new_span"])}
                    for entry in offsets[index]
                ]
                offsets[index] = [{**inserted, "new_span": (0, len(bos_token))}, *shifted]
        return text, offsets

    def _merge_kwargs(self, *args, **kwargs):
        merged = super()._merge_kwargs(*args, **kwargs)
        if self.add_bos_token:
            # The BOS token is in the text already, and some tokenizers would add another one.
            merged["text_kwargs"]["add_special_tokens"] = False
        return merged

    def _check_special_mm_tokens(self, text: list[str], text_inputs, modalities: list[str]):
        """Raises if truncation cut the tokens of an image."""
        for index, (sample, input_ids) in enumerate(zip(text, text_inputs["input_ids"], strict=False)):
            expected = sum(sample.count(token) for token in IMAGE_TOKENS if token != self.image_token)
            found = int(np.isin(np.asarray(input_ids), self.image_token_ids).sum())
            if found != expected:
                raise ValueError(
                    f"Truncation would cut the images of prompt {index}: {found} of their {expected} tokens are left. "
                    "Raise `max_length`, lower `max_crops`, or switch truncation off."
                )

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs) -> MultiModalData:
        """
        Predicts, without pixels, what images of these sizes expand to.

        Args:
            image_sizes (`list[list[int]]`, *optional*): height and width of each image, in pixels.

        Returns:
            `MultiModalData`: `num_image_tokens`, all tokens of each image's span, markers included, and
            `num_image_patches`, its tiles, thumbnail included.
        """
        if image_sizes is None:
            return MultiModalData()
        images_kwargs = {**kwargs, **kwargs.get("images_kwargs", {})}
        geometry = self.image_processor.geometry(images_kwargs)
        grids = [self.image_processor.get_image_grid(*size, images_kwargs) for size in image_sizes]
        return MultiModalData(
            num_image_tokens=[geometry.num_tokens(grid)[0] for grid in grids],
            num_image_patches=[1 + rows * cols for rows, cols in grids],
        )


def _holds_image(images) -> bool:
    """Whether there is any image in an image or a list of them."""
    return any(map(_holds_image, images)) if isinstance(images, (list, tuple)) else is_valid_image(images)


__all__ = ["JinaVLMProcessor"]
