# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Where an answer came from: the attention of decoder and connector, mapped back to the pixels of the image."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers.utils import cached_file, logging

from .modeling.image_plan import plan_images
from .modeling.modeling_jvlm import JinaVLMForConditionalGeneration
from .processing.drawing import strongest_place
from .processing.processing_jvlm import JinaVLMProcessor
from .processing.prompt_inputs import prompt_inputs


EVIDENCE_FILE = "evidence.json"


@dataclass
class EvidenceMeasurement:
    """
    How often the strongest place of the evidence of a checkpoint lies in the right box. [`measure_evidence`] makes it.

    Args:
        layer (`int`): the decoder layer whose attention is used.
        right (`int`): number of answers whose strongest place lies in a right box.
        total (`int`): number of all answers.
        chance (`float`): the same share for a random place: the mean share of the boxes in the area of the image.
        data (`str`): what was asked about, such as `"questions about one digit of held-out pages"`.
        choice (`list[int]`): `right` of every layer on the rows on which the layer was chosen.
        choice_total (`int`): number of these rows.
    """

    layer: int
    right: int
    total: int
    chance: float
    data: str
    choice: list[int]
    choice_total: int

    def __str__(self) -> str:
        return (
            f"Measured for this model on {self.data}: the strongest place lies in the right box for {self.right} of "
            f"{self.total} answers ({self.right / self.total:.1%}), a random place for {self.chance:.1%}."
        )

    def save(self, folder: str | Path) -> None:
        """Writes `evidence.json` into the folder of the checkpoint."""
        (Path(folder) / EVIDENCE_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path) -> "EvidenceMeasurement":
        """
        Reads `evidence.json` of a folder or of a repository on the Hub.

        Raises:
            OSError: if the checkpoint has no such file.
            ValueError: if the file is damaged.
        """
        path = cached_file(str(checkpoint), EVIDENCE_FILE, _raise_exceptions_for_missing_entries=False)
        if path is None:
            raise OSError(
                f"{checkpoint} has no {EVIDENCE_FILE}: nobody has measured how often the evidence of this checkpoint "
                "is in the right place, so it is not shown. `jvlm.measure_evidence` measures it."
            )
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged; measure again with `jvlm.measure_evidence`. ({error})") from error


def find_evidence(
    model: JinaVLMForConditionalGeneration,
    processor: JinaVLMProcessor,
    image: str | PIL.Image.Image,
    question: str,
    answer: str,
    layer: int,
    **images_kwargs,
) -> np.ndarray:
    """
    Finds the pixels that an answer attends to.

    For each token of the answer, the attention of a decoder layer, averaged over its heads, gives a weight to every
    image token. The attention of the connector divides it among the patches that the token was pooled from. All
    patches, of the tiles and of the thumbnail, spread their weight evenly over the pixels that they show. Attention is
    no proof: [`measure_evidence`] tells how often its strongest place is the right one.

    The model runs once, with eager attention, so no other thread may use it at the same time.

    Args:
        model ([`JinaVLMForConditionalGeneration`]): the model.
        processor ([`JinaVLMProcessor`]): its processor.
        image (`str` or `PIL.Image.Image`): the image, or its path or URL.
        question (`str`): the question about the image.
        answer (`str`): the answer to it, for example the one that the model generated.
        layer (`int`): index of the decoder layer.
        images_kwargs: arguments of the image processor, such as `max_crops`, as for the answer.

    Returns:
        `np.ndarray` of shape `(height, width)`: the share of the attention that each pixel of the image gets. The sum
        is the share that the whole image gets.

    Raises:
        ValueError: if `image` is not one image that can be read, if the answer is empty, if the chat template does not
            mark answers, or if the model has no such layer.
    """
    num_layers = model.config.text_config.num_hidden_layers
    if not 0 <= layer < num_layers:
        raise ValueError(f"`layer` is {layer}, but the decoder has the layers 0 to {num_layers - 1}.")
    return _find_evidence(model, processor, image, question, answer, [layer], images_kwargs)[0]


def measure_evidence(
    model: JinaVLMForConditionalGeneration,
    processor: JinaVLMProcessor,
    choice_rows: Iterable[tuple],
    rows: Iterable[tuple],
    data: str,
    max_new_tokens: int = 64,
) -> EvidenceMeasurement:
    """
    Measures how often the strongest place of the evidence lies in the right box.

    A row is an image, a question, and the boxes in which the answer is written: left, top, right and bottom, in whole
    pixels of the image. The model answers every question greedily. The box counts, whether or not the answer is right.
    An empty answer has no evidence and counts as a miss.

    Args:
        model ([`JinaVLMForConditionalGeneration`]): the model.
        processor ([`JinaVLMProcessor`]): its processor.
        choice_rows (`Iterable[tuple]`): rows on which the decoder layer is chosen, such as training data.
        rows (`Iterable[tuple]`): other rows, to measure on.
        data (`str`): what `rows` are, for captions.
        max_new_tokens (`int`, *optional*, defaults to 64): maximum length of an answer.

    Raises:
        ValueError: if there are no rows, or an image or a box is invalid.
    """
    layers = list(range(model.config.text_config.num_hidden_layers))
    choice, _, choice_total = _count_hits(model, processor, choice_rows, layers, max_new_tokens, "Choice of the layer")
    layer = int(choice.argmax())
    right, chance, total = _count_hits(model, processor, rows, [layer], max_new_tokens, "Measurement")
    return EvidenceMeasurement(layer, int(right[0]), total, chance, data, choice.tolist(), choice_total)


def _count_hits(model, processor, rows, layers, max_new_tokens, title) -> tuple[np.ndarray, float, int]:
    """The number of hits by layer, the share of hits of a random place, and the number of rows."""
    hits, chances = np.zeros(len(layers), int), []
    for image, question, boxes in logging.tqdm(list(rows), desc=title, unit="question"):
        image = processor.image_processor.fetch_images(image)
        is_right = np.zeros((image.height, image.width), bool)
        for left, top, right, bottom in boxes:
            is_right[top:bottom, left:right] = True
        if not is_right.any():
            raise ValueError(f"The boxes {boxes} hold no pixel of an image of {image.width}×{image.height} pixels.")
        chances.append(is_right.mean())
        if answer := _answer(model, processor, image, question, max_new_tokens):
            for index, evidence in enumerate(_find_evidence(model, processor, image, question, answer, layers, {})):
                x, y = strongest_place(evidence)
                hits[index] += is_right[int(y), int(x)]
    if not chances:
        raise ValueError("There are no rows to measure on.")
    return hits, float(np.mean(chances)), len(chances)


def _user(image, question: str) -> dict:
    return {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}


def _answer(model, processor, image, question: str, max_new_tokens: int) -> str:
    inputs = prompt_inputs(processor, [_user(image, question)]).to(model.device, model.dtype)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def _find_evidence(
    model, processor, image, question: str, answer: str, layers: list[int], images_kwargs: dict
) -> np.ndarray:
    """[`find_evidence`] of several layers: `[layers, height, width]`."""
    image = processor.image_processor.fetch_images(image)
    if not isinstance(image, PIL.Image.Image):
        raise ValueError(f"`image` must be one PIL image, path or URL, got {type(image).__name__}.")
    inputs = processor.apply_chat_template(
        [_user(image, question), {"role": "assistant", "content": [{"type": "text", "text": answer}]}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs=dict(images_kwargs),
    )
    ids = inputs["input_ids"][0]
    is_answer = torch.as_tensor(inputs.pop("assistant_masks"))[0].bool()
    is_answer &= ~torch.isin(ids, torch.tensor(processor.tokenizer.all_special_ids))
    if not answer.strip() or not is_answer.any():
        raise ValueError(
            f"The prompt has no tokens of the answer {answer!r}. It must not be empty, and the chat template must "
            "mark answers by `{% generation %}`."
        )
    before = is_answer.nonzero()[:, 0] - 1  # a token is predicted where the token before it is read
    by_token, by_patch = _attention(model, inputs, before, layers)  # [layers, tokens], [tokens, patches of a window]

    geometry = processor.image_processor.geometry(images_kwargs)
    [grid] = processor.image_processor(image, **images_kwargs)["image_grids"].tolist()  # it may depend on pixels
    side, size, (rows, cols) = geometry.patches_per_side, geometry.pooling_size, geometry.pooled_grid
    positions = inputs["image_token_positions"].cpu().numpy()
    tile, cell = (positions >= 0).nonzero()
    token = positions[tile, cell]
    windows = (by_token[:, token, None] * by_patch[token]).reshape(len(layers), -1, size, size)
    patches = np.zeros((len(layers), len(positions), rows, cols, size, size))
    patches[:, tile, cell // cols, cell % cols] = windows
    patches = patches.swapaxes(3, 4).reshape(len(layers), len(positions), rows * size, cols * size)
    # Windows may reach beyond the tile, or leave out the last patches. What falls on the padding has no place.
    missing = [(0, max(0, side - count * size)) for count in (rows, cols)]
    patches = np.pad(patches[..., :side, :side], [(0, 0), (0, 0), *missing])
    return geometry.patches_to_pixels(patches, tuple(grid), image.height, image.width)


@torch.no_grad()
def _attention(model, inputs, rows: torch.Tensor, layers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """
    The attention from the tokens at `rows` to the image tokens, `[layers, image tokens]`, and from the image tokens to
    the patches of their windows, `[image tokens, patches]`; both are means over heads, the first one also over rows.
    """
    decoder, pooling = model.model.language_model, model.model.connector.pooling
    is_image = inputs["input_ids"][0] == model.config.image_token_id
    by_token: dict[torch.nn.Module, torch.Tensor] = {}
    by_patch: list[torch.Tensor] = []

    def keep_decoder(module, args, output):  # of [1, heads, tokens, tokens]
        by_token[module] = output[1][0, :, rows].float().mean(dim=(0, 1)).cpu()[is_image]

    def keep_connector(module, args, output):  # of [cells, heads, 1, patches]
        by_patch.append(output[1][:, :, 0].float().mean(dim=1).cpu()[: int(is_image.sum())])

    modules = [decoder.layers[layer].self_attn for layer in layers]
    hooks = [module.register_forward_hook(keep_decoder) for module in modules]
    hooks.append(pooling.register_forward_hook(keep_connector))
    config = model.config
    implementations = {name: getattr(config, name)._attn_implementation for name in config.sub_configs}
    implementations[""] = config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that returns weights
    # A plan of unknown positions: the connector pools all cells in one call and takes none from a cache.
    plan = replace(plan_images(inputs["image_token_positions"]), positions_shape=None)
    try:
        model.model(**inputs.to(model.device, model.dtype), image_plan=plan, use_cache=False)
    finally:
        model.set_attn_implementation(implementations)
        for hook in hooks:
            hook.remove()
    return np.stack([by_token[module].numpy() for module in modules]), by_patch[0].numpy()


__all__ = ["EvidenceMeasurement", "find_evidence", "measure_evidence"]
