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
from transformers.image_utils import ImageInput, is_valid_image, make_nested_list_of_images
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import auto_docstring

from ..configuration.checkpoint_files import name_damaged_file


IMAGE_PLACEHOLDER = "<|image|>"
IMAGE_TOKENS = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", IMAGE_PLACEHOLDER]

# One leading space, no line breaks, nothing after "Assistant:"; an answer ends with the end-of-sequence token.
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- ' ' + message['role'].capitalize() + ':' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}"
    "{{- ' ' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
    "{{- eos_token -}}"
    "{%- endgeneration -%}"
    "{%- elif message['content'] is string -%}{{- ' ' + message['content'] -}}"
    "{%- else -%}CONTENT{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' Assistant:' -}}{%- endif -%}"
)
_PART = "{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}{%- elif part['type'] == 'text' -%}TEXT{%- endif -%}"
CHAT_TEMPLATES = {
    "independent": _CHAT_TEMPLATE.replace(
        "CONTENT",
        "{%- for part in message['content'] -%}"
        + _PART.replace("TEXT", "{{- ' ' + part['text'] -}}")
        + "{%- endfor -%}",
    ),
    "stitched": _CHAT_TEMPLATE.replace(
        "CONTENT",
        "{{- ' ' -}}{%- for part in message['content'] -%}"
        + _PART.replace("TEXT", "{{- part['text'] -}}")
        + "{%- endfor -%}",
    ),
}


def add_image_tokens(tokenizer: PreTrainedTokenizerBase, first_token_id: int | None = None) -> int:
    """
    Adds the image tokens that a tokenizer lacks, in place, as special tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): any tokenizer of Transformers.
        first_token_id (`int`, *optional*): id of the first one, `<im_start>`; fillers `|<EXTRA_TOKENS_i>|` take the
            ids up to it, as in the published vocabulary (151936). By default no id is left out.

    Returns:
        `int`: how many tokens were added, fillers included.

    Raises:
        ValueError: if `first_token_id` is taken already.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in IMAGE_TOKENS if token not in vocabulary]
    if missing and first_token_id is not None:
        if len(tokenizer) > first_token_id:
            raise ValueError(
                f"`first_token_id` is {first_token_id}, but the tokenizer has {len(tokenizer)} tokens already; "
                f"choose {len(tokenizer)} or more."
            )
        missing = [f"|<EXTRA_TOKENS_{i}>|" for i in range(first_token_id - len(tokenizer))] + missing
    return tokenizer.add_tokens(missing, special_tokens=True) if missing else 0


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
            surrogate pair, or truncation would cut an image's tokens; the message names the prompt and the mend. When
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
                "The tokenizer has no EOS token, with which answers end: set `tokenizer.eos_token`. Folders say it in "
                "tokenizer_config.json."
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
        if "always_start_with_space" in processor_dict:
            # In the published schema this is the only setting; its code always prepends a BOS token.
            if processor_dict["always_start_with_space"] is not True:
                raise ValueError(
                    "`processor_config.always_start_with_space` is "
                    f"{processor_dict['always_start_with_space']!r}; only True is implemented."
                )
            processor_dict = {"add_bos_token": True, **processor_dict}
            del processor_dict["always_start_with_space"]
            for part in args:
                # What is saved again holds no code that the published tokenizer config could name.
                getattr(part, "init_kwargs", {}).pop("auto_map", None)
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @property
    def unused_input_names(self) -> list[str]:
        """The grids are needed to build the prompt, not by the model."""
        return ["image_grids"]

    def prepare_inputs_layout(self, images: ImageInput | None = None, text=None, **kwargs):
        """Loads images, nests them by prompt and gives prompts without a placeholder theirs."""
        images, text, *others = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        if images is None or (isinstance(images, (list, tuple)) and not any(map(_holds_image, images))):
            return None, text, *others
        if text is None or not all(isinstance(sample, str) for sample in text):
            return images, text, *others
        if isinstance(images, (list, tuple)) and all(isinstance(sample, (list, tuple)) for sample in images):
            nested = list(images)
        elif len(text) == 1:
            nested = make_nested_list_of_images(images)
            nested = [[image for sample in nested for image in sample]]
        else:
            return images, text, *others
        if len(nested) != len(text):
            raise ValueError(
                f"Got {len(nested)} lists of images for {len(text)} prompts; give each prompt one, empty if need be. "
                f"The number of {self.image_token} tokens in the prompts should be the same as the number of images."
            )
        text = [
            sample if self.image_token in sample else self.image_token * len(sample_images) + sample
            for sample, sample_images in zip(text, nested, strict=True)
        ]
        for index, (sample, sample_images) in enumerate(zip(text, nested, strict=True)):
            num_placeholders, num_images = sample.count(self.image_token), len(sample_images)
            if num_placeholders != num_images:
                raise ValueError(_count_mismatch(f"Prompt {index} has", num_placeholders, num_images))
        return nested, text, *others

    def validate_inputs(self, images: ImageInput | None = None, text=None, **kwargs):
        """Checks that there is an image for every placeholder, and that every prompt is text without image tokens."""
        if text is None:
            super().validate_inputs(images=images, text=text, **kwargs)
            return
        if not all(isinstance(sample, str) for sample in text):
            raise ValueError("`text` must be a string or a list of strings.")
        if not text:
            raise ValueError("`text` is an empty list; give at least one prompt.")
        for index, sample in enumerate(text):
            try:
                sample.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"Prompt {index} contains {sample[error.start]!r}, half of a surrogate pair: a character was cut "
                    'in two. Drop it, as `text.encode(errors="ignore").decode()` does.'
                ) from error
            for token in IMAGE_TOKENS:
                if token != self.image_token and token in sample:
                    raise ValueError(
                        f"Prompt {index} contains {token!r}, which only the processor writes; "
                        f"mark the place of an image with {self.image_token!r}."
                    )
        num_placeholders = sum(sample.count(self.image_token) for sample in text)
        num_images = 0 if images is None else sum(map(len, make_nested_list_of_images(images)))
        if num_placeholders != num_images:
            raise ValueError(_count_mismatch("The prompts have", num_placeholders, num_images))

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The tokens, as text, that the `image_idx`-th image expands to."""
        return self._image_text(tuple(int(count) for count in image_inputs["image_grids"][image_idx]), kwargs)

    def _image_text(self, grid: tuple[int, int], images_kwargs: dict) -> str:
        geometry = self.image_processor.geometry(images_kwargs)
        if geometry.layout == "independent":
            return "<im_patch>" * geometry.num_tokens(grid)[0]
        return "".join(
            "<im_start>" + ("<im_patch>" * cols + "<im_col>") * rows + "<im_end>"
            for rows, cols in (geometry.pooled_grid, geometry.stitched_grid(grid))
        )

    def get_text_with_replacements(self, text: list[str], *args, **kwargs) -> tuple[list[str], list[list[dict]]]:
        """Expands the placeholders and prepends the BOS token, and tells where each piece went."""
        text, offsets = super().get_text_with_replacements(text, *args, **kwargs)
        bos_token = self.tokenizer.bos_token or self.tokenizer.eos_token
        if not self.add_bos_token:
            return text, offsets
        for index, sample in enumerate(text):
            if sample.startswith(bos_token):
                continue
            text[index] = bos_token + sample
            # An insertion at 0 shifts everything behind it: told in the same terms as the expanded placeholders.
            shifted = [
                {**entry, "new_span": tuple(char + len(bos_token) for char in entry["new_span"])}
                for entry in offsets[index]
            ]
            inserted = {"type": "text", "span": (0, 0), "new_span": (0, len(bos_token)), "text": ""}
            offsets[index] = [{**inserted, "replacement": bos_token}, *shifted]
        return text, offsets

    def _merge_kwargs(self, *args, **kwargs):
        merged = super()._merge_kwargs(*args, **kwargs)
        if self.add_bos_token:
            # The BOS token is in the text already.
            merged["text_kwargs"]["add_special_tokens"] = False
        return merged

    def _check_special_mm_tokens(self, text: list[str], text_inputs, modalities: list[str]):
        """Raises if truncation cut an image's tokens."""
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


def _count_mismatch(subject: str, num_placeholders: int, num_images: int) -> str:
    return (
        f"{subject} {num_placeholders} {IMAGE_PLACEHOLDER} but {num_images} images were given for it. "
        f"The number of {IMAGE_PLACEHOLDER} tokens in the prompts should be the same as the number of images; "
        "write one for each image, or none to put the images of a prompt at its start."
    )


__all__ = ["JinaVLMProcessor", "add_image_tokens"]
