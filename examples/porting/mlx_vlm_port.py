# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
The protocol of `check_port` on top of mlx-vlm's port of the model, `mlx_vlm.models.jina_vlm`, as of version 0.7.10.

    python -m venv mlx && mlx/bin/pip install torch==2.13.0 'mlx-vlm[cpu]==0.7.10'
    python -m jvlm.conversion_scripts.porting_kit --output porting_kit
    python -m jvlm.conversion_scripts.check_port porting_kit -- mlx/bin/python examples/porting/mlx_vlm_port.py

It uses nothing of jvlm. All values come from mlx-vlm's own functions, with four exceptions:

- The port reads weights under other names than the published ones. They are renamed here.
- It has the ids of the image tokens as constants. Those of the checkpoint replace them, unless `--own-token-ids` is
  given.
- With `--repaired` the faults that docs/porting.md lists are repaired here, to see whether others are left.
- Where the runner gives the expected values of a stage, the places of cells in the sequence are computed here.
"""

import base64
import importlib.metadata
import json
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import PIL.Image
from mlx_vlm.generate.ar import generate_step
from mlx_vlm.models import jina_vlm
from mlx_vlm.models.base import InputEmbeddingsFeatures
from mlx_vlm.prompt_utils import apply_chat_template
from mlx_vlm.utils import load_config, load_processor, prepare_inputs, should_add_special_tokens


STAGES = ["prompt", "pixels", "positions", "input_ids", "features", "connector", "embeddings", "logits", "tokens"]
GIVEN = ["prompt", "positions", "input_ids", "features", "connector", "embeddings"]
TOKENS = {
    "patch_token_id": "<im_patch>",
    "start_token_id": "<im_start>",
    "end_token_id": "<im_end>",
    "column_token_id": "<im_col>",
}
NAMES = [
    (r"^model\.vision_model\.vl_connector\.", "vl_connector."),
    (r"^model\.", ""),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"_lnorm\.", "_norm."),
    (r"\.(qkv|q|kv)_w\.weight$", r".\1.weight"),
    (r"^(language_model\..*|vl_connector\.projector)\.up\.weight$", r"\1.gate_up.weight"),
]


class Replaced:
    """An object with other values of some attributes."""

    def __init__(self, target: Any, **attributes):
        self._target = target
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


class Port:
    """Computes the stages of a case, see README.md of the kit."""

    def __init__(self, checkpoint: str, own_token_ids: bool):
        folder = Path(checkpoint)
        self.config = load_config(folder)
        self.model = jina_vlm.Model(jina_vlm.ModelConfig.from_dict(self.config))
        self.model.load_weights(rename(mx.load(str(folder / "model.safetensors"))))
        self.processor = load_processor(folder)
        self.image_processor = self.processor._image_proc
        self.is_repaired = "--repaired" in sys.argv
        if self.is_repaired:
            self.image_processor.process_image = self.process_image
        if not own_token_ids:
            for name, token in TOKENS.items():
                setattr(self.image_processor, name, self.processor.tokenizer.convert_tokens_to_ids(token))

    def compute(self, request: dict, values: dict) -> None:
        """Adds the stages to `values`, so that those before an error are known."""
        given = {stage: decode(value) for stage, value in request["given"].items()}
        values["prompt"] = given.get("prompt")
        if values["prompt"] is None and self.is_repaired:
            values["prompt"] = self.processor.apply_chat_template(
                request["messages"], add_generation_prompt=True, tokenize=False
            )
        elif values["prompt"] is None:
            num_images = len(request["images"])
            values["prompt"] = apply_chat_template(
                self.processor, self.config, request["messages"], num_images=num_images
            )
        inputs = self.prepare(values["prompt"], request["images"])
        own_ids = np.array(inputs["input_ids"])[0]
        values["input_ids"] = given.get("input_ids", own_ids)
        images = {}
        if request["images"]:
            images = self.encode_images(inputs, own_ids, given, values)
        if {"embeddings", "logits", "tokens"} & {*request["stages"]}:
            self.answer(given, values, images, request["max_new_tokens"])

    def prepare(self, prompt: str, images: list[str]) -> dict:
        """The inputs of the model."""
        arguments = {
            "image_token_index": self.model.config.image_token_index,
            "add_special_tokens": should_add_special_tokens(self.model.config.model_type, self.processor),
        }
        if not self.is_repaired:
            return prepare_inputs(self.processor, images=images or None, prompts=prompt, **arguments)
        # One image at a time, because the port stacks images, and only those of the same grid fit.
        texts = prompt.split("<|image|>")
        bos = self.processor.tokenizer.pad_token_id
        parts: dict[str, list] = {"input_ids": [np.array([[bos]])]}
        for text, image in zip(texts, images, strict=False):
            inputs = prepare_inputs(self.processor, images=[image], prompts=f"{text}<|image|>", **arguments)
            length = sum(ids.shape[1] for ids in parts["input_ids"])
            masks = np.array(inputs["image_masks"])
            masks[:, -1] = 0.5  # `pad_embed` row 1 belongs to the last tile
            found = {"pixel_values": inputs["pixel_values"], "image_masks": masks, "input_ids": inputs["input_ids"]}
            found["image_input_idx"] = np.array(inputs["image_input_idx"]) + length
            for name, value in found.items():
                parts.setdefault(name, []).append(np.array(value))
        parts["input_ids"].append(
            np.array(prepare_inputs(self.processor, prompts=texts[-1], **arguments)["input_ids"])
        )
        return {name: mx.array(np.concatenate(value, axis=1)) for name, value in parts.items()}

    def process_image(self, image: PIL.Image.Image) -> dict:
        """mlx-vlm's `process_image`, with the first resize rounded to 8 bits and the others not."""
        processor = self.image_processor
        array = np.array(image.convert("RGB"), np.float32)
        limits = {"min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels}
        size = jina_vlm.image_processor.smart_resize(*array.shape[:2], factor=processor.patch_size, **limits)
        array = np.round(resize(array, size)) / np.float32(255)
        processor.resize_image = lambda array, size: (resize(array, size), np.ones(size, bool))
        patches, tokens, order, masks = processor.crop_image(array)
        places = processor.build_image_input_idx(tokens, order)
        return {"pixel_values": patches, "image_tokens": tokens, "image_input_idx": places, "image_masks": masks}

    def encode_images(self, inputs: dict, own_ids: np.ndarray, given: dict, values: dict) -> dict:
        """Adds the stages of images; returns the arguments with which mlx-vlm merges them into the prompt."""
        patches, masks, places = inputs["pixel_values"], inputs["image_masks"], np.array(inputs["image_input_idx"])
        values["pixels"] = to_tiles(np.array(patches))
        values["positions"] = given.get("positions", self.to_positions(places, own_ids))
        if "positions" in given or "input_ids" in given:
            places = self.to_places(values["positions"], values["input_ids"]).reshape(places.shape)
        features = []

        def connector(image_features: mx.array, image_masks: mx.array) -> mx.array:
            if "features" in given:
                image_features = mx.array(given["features"]).reshape(image_features.shape)
            features.append(image_features)
            return self.model.vl_connector(image_features, image_masks)

        model = Replaced(self.model, vl_connector=connector)
        pooled = np.array(jina_vlm.Model.get_image_features(model, patches, masks))
        values["features"] = np.array(features[0]).reshape(-1, *features[0].shape[2:])
        cells = pooled.reshape(-1, pooled.shape[-1])
        kept = np.flatnonzero(places >= 0)
        kept = kept[places.ravel()[kept].argsort(kind="stable")]
        if "connector" in given:
            cells[kept] = given["connector"]
        values["connector"] = cells[kept]
        pooled = mx.array(cells.reshape(pooled.shape))
        extra = {"image_masks": masks, "image_input_idx": mx.array(places), "cached_image_features": pooled}
        return {"pixel_values": patches, **extra}

    def answer(self, given: dict, values: dict, images: dict, max_new_tokens: int) -> None:
        """Adds the stages of the language model."""
        input_ids = mx.array(values["input_ids"])[None]
        if "embeddings" in given:
            embeddings = mx.array(given["embeddings"])[None]
        else:
            embeddings = self.model.get_input_embeddings(input_ids, **images).inputs_embeds
        values["embeddings"] = np.array(embeddings)[0]
        values["logits"] = np.array(self.model.language_model(input_ids, inputs_embeds=embeddings).logits)[0, -1]
        merged = InputEmbeddingsFeatures(inputs_embeds=embeddings)
        model = Replaced(self.model, get_input_embeddings=lambda *args, **kwargs: merged)
        steps = generate_step(input_ids, model, None, None, max_tokens=max_new_tokens, temperature=0.0)
        values["tokens"] = np.array([int(token) for token, _ in steps])

    def to_positions(self, places: np.ndarray, input_ids: np.ndarray) -> np.ndarray:
        """From places in the sequence `[images, tiles, cells]` to indices among the cells of an image."""
        cells = np.flatnonzero(input_ids == self.image_processor.patch_token_id)
        places = places.reshape(-1, places.shape[-1])
        index = np.where(places >= 0, np.searchsorted(cells, places), -1)
        # Two grids of cells per image, each after an <im_start>; a thumbnail has the first cell of the first one.
        starts = np.flatnonzero(input_ids == self.image_processor.start_token_id)[::2]
        first_cells = np.searchsorted(cells, starts)
        first = first_cells[np.searchsorted(first_cells, index.max(axis=1), side="right") - 1]
        return np.where(index >= 0, index - first[:, None], -1)

    def to_places(self, positions: np.ndarray, input_ids: np.ndarray) -> np.ndarray:
        """The reverse of `to_positions`."""
        cells = np.flatnonzero(input_ids == self.image_processor.patch_token_id)
        image = (positions[:, 0] == 0).cumsum() - 1
        counts = np.bincount(image, (positions >= 0).sum(axis=1)).astype(int)
        first = (counts.cumsum() - counts)[image][:, None]
        return np.where(positions >= 0, cells[(first + positions).clip(0, len(cells) - 1)], -1)


def rename(weights: dict[str, mx.array]) -> list[tuple[str, mx.array]]:
    """The published weights under mlx-vlm's names, with joint biases."""
    renamed = {}
    for name, weight in weights.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    for name in [name for name in renamed if name.endswith(".q_b")]:
        block = name.removesuffix("q_b")
        parts = [renamed.pop(block + part) for part in ("q_b", "k_b", "v_b")]
        if block.startswith("vl_connector."):
            renamed[block + "q.bias"], renamed[block + "kv.bias"] = parts[0], mx.concatenate(parts[1:])
        else:
            renamed[block + "qkv.bias"] = mx.concatenate(parts)
    return list(renamed.items())


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, without an antialiasing filter; corners are not aligned. `[height, width, 3]` in float32."""
    for axis, length in enumerate(size):
        if length != image.shape[axis]:
            scale = np.float32(image.shape[axis]) / np.float32(length)
            source = np.maximum(scale * (np.arange(length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
            low = np.minimum(source.astype(int), image.shape[axis] - 1)
            weight = (source - low)[(...,) + (None,) * (2 - axis)]
            high = np.minimum(low + 1, image.shape[axis] - 1)
            image = image.take(low, axis) * (1 - weight) + image.take(high, axis) * weight
    return image.astype(np.float32)


def to_tiles(patches: np.ndarray) -> np.ndarray:
    """From `[images, tiles, 729, 588]`, where 588 is row, column and channel, to `[tiles, 3, 378, 378]`."""
    side = round(patches.shape[2] ** 0.5)
    size = round((patches.shape[3] // 3) ** 0.5)
    tiles = patches.reshape(-1, side, side, size, size, 3).transpose(0, 5, 1, 3, 2, 4)
    return tiles.reshape(len(tiles), 3, side * size, side * size)


def decode(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return np.frombuffer(base64.b64decode(value["base64"]), value["dtype"]).reshape(value["shape"])


def encode(stage: str, value: Any, folder: str) -> Any:
    if isinstance(value, str):
        return value
    np.save(Path(folder) / f"{stage}.npy", value)
    return {"file": f"{stage}.npy"}


@lru_cache(maxsize=1)
def load_port(checkpoint: str) -> Port:
    return Port(checkpoint, "--own-token-ids" in sys.argv)


def answer(request: dict) -> dict:
    if request["type"] == "hello":
        version = importlib.metadata.version("mlx-vlm")
        hello = {"id": request["id"], "protocol": 1, "name": "mlx-vlm", "version": version}
        return {**hello, "stages": STAGES, "given": GIVEN, "checkpoints": ["published"]}
    values: dict[str, Any] = {}
    answer: dict[str, Any] = {"id": request["id"]}
    try:
        load_port(request["checkpoint"]).compute(request, values)
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    found = [stage for stage in request["stages"] if stage in values]
    return {**answer, "stages": {stage: encode(stage, values[stage], request["output_folder"]) for stage in found}}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
