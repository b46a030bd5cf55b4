# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Vision features kept on disk: what a frozen vision tower makes of every tile, computed once."""

import copy
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers.utils import logging

from ..modeling.image_plan import digest
from .data_collator import DataCollatorForJinaVLM


SETTINGS = "vision_tower.json"
SHARD_BYTES = 256 * 2**20
CONFIG_FIELDS = ("image_size", "patch_size", "num_attention_heads", "hidden_act", "layer_norm_eps")


class VisionFeatures:
    """
    The features of tiles in a folder, each under a hash of the tile's pixels. [`keep_vision_features`] makes them.

    The folder has safetensors shards and `vision_tower.json`, which tells the vision tower that made them. A shard
    gets its name when it is complete, so that an interrupted run leaves none in part. Any number of processes may read
    and add shards at once.

    Args:
        folder (`str` or `Path`): the folder; it is made if it does not exist.
        settings (`dict`): what the features depend on, as [`tower_settings`] returns it.

    Raises:
        ValueError: if the folder holds the features of another vision tower, or a shard cannot be read.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS
        if not path.exists():
            self._write(path, lambda part: part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8"))
        kept = json.loads(path.read_text(encoding="utf-8"))
        if different := [name for name in settings if kept.get(name) != settings[name]]:
            name = different[0]
            raise ValueError(
                f"{self.folder} holds the features of another vision tower: its `{name}` is {kept.get(name)!r}, here "
                f"it is {settings[name]!r}. Name another folder for the features of this one."
            )
        self._shard_of: dict[str, Path] = {}
        self._shards: set[Path] = set()
        self._new: dict[str, torch.Tensor] = {}
        self._num_new_bytes = 0
        self.refresh()

    def refresh(self) -> None:
        """Finds the shards that other processes have added."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._shards):
            try:
                with safe_open(path, "pt") as shard:
                    self._shard_of |= dict.fromkeys(shard.keys(), path)
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged ({error}). Delete it to compute its features again.") from error
            self._shards.add(path)

    def __len__(self) -> int:
        return len(self._shard_of.keys() | self._new.keys())

    def __contains__(self, key: str) -> bool:
        return key in self._shard_of or key in self._new

    def add(self, key: str, features: torch.Tensor) -> None:
        """Adds the features of a tile. [`flush`] writes what is not written yet."""
        self._new[key] = features.to("cpu", copy=True)
        self._num_new_bytes += features.nbytes
        if self._num_new_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the added features to a shard."""
        if self._new:
            path = self.folder / f"{uuid.uuid4().hex}.safetensors"
            self._write(path, lambda part: save_file(self._new, part))
            self._new, self._num_new_bytes = {}, 0
            self.refresh()

    @staticmethod
    def _write(path: Path, write) -> None:
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        write(part)
        os.replace(part, path)

    def read(self, pixel_values: torch.Tensor) -> torch.Tensor:
        r"""
        The features of tiles.

        Args:
            pixel_values (`torch.Tensor` of shape `(tiles, channels, height, width)`): the tiles.

        Returns:
            `torch.Tensor` of shape `(tiles, patches, feature_size)`.

        Raises:
            ValueError: if the features of a tile are not in the folder.
        """
        features: dict[str, torch.Tensor] = {}
        keys = [digest(tile) for tile in pixel_values]
        if missing := [index for index, key in enumerate(keys) if key not in self._shard_of]:
            raise ValueError(
                f"{self.folder} has no features of {len(missing)} of {len(keys)} tiles of a batch. Features are kept "
                "of the pixels of the training rows: rows, images and the settings of the image processor must stay "
                "as they were, and images cannot be changed at random."
            )
        for path in {self._shard_of[key] for key in keys}:
            with safe_open(path, "pt") as shard:
                features |= {key: shard.get_tensor(key) for key in keys if self._shard_of[key] == path}
        return torch.stack([features[key] for key in keys])


def tower_settings(model: Any, mixed_precision: str = "no") -> dict[str, Any]:
    """
    What the features of a model depend on: a hash of the weights of its vision tower, their dtype, mixed precision,
    the blocks in use and those fields of the configuration that shapes of weights do not tell.
    """
    config, state = model.config, model.vision_tower.state_dict()
    return {
        "dtype": str(model.vision_tower.dtype).removeprefix("torch."),
        "mixed_precision": mixed_precision,
        "vision_feature_layer": list(config.vision_feature_layer),
        **{name: getattr(config.vision_config, name) for name in CONFIG_FIELDS},
        "weights": digest(*(state[name] for name in sorted(state))),
    }


class _NewTiles:
    """Collates rows to those of their tiles that have no features yet, as pixels by key."""

    def __init__(self, collator: DataCollatorForJinaVLM, kept: VisionFeatures):
        self.collator = copy.copy(collator)
        self.collator.vision_features = None
        self.collator._num_skipped_rows = torch.zeros(1, dtype=torch.long)  # training counts them
        self.kept = kept

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        tiles = {digest(tile): tile for tile in self.collator(rows).get("pixel_values", ())}
        return {key: tile for key, tile in tiles.items() if key not in self.kept}


@contextmanager
def _whole_tower(model: Any, device: torch.device) -> Iterator[None]:
    """The weights of the vision tower on `device`, also where ZeRO-3 has divided them."""
    tower = model.vision_tower
    before = next(tower.parameters()).device
    if any(hasattr(parameter, "ds_id") for parameter in tower.parameters()):
        import deepspeed  # type: ignore[import-not-found]

        with deepspeed.zero.GatheredParameters(list(tower.parameters())):
            yield
    elif before == device:  # a quantized tower cannot be moved
        yield
    else:
        tower.to(device)
        yield
        tower.to(before)


def keep_vision_features(
    folder: str | Path,
    model: Any,
    rows: Any,
    collator: DataCollatorForJinaVLM,
    accelerator: Accelerator,
    batch_size: int = 8,
    num_workers: int = 0,
    show_progress: bool = True,
) -> VisionFeatures:
    """
    Computes the features of all tiles of `rows` that `folder` does not have. The processes share the rows; under FSDP,
    whose first process alone has the weights before training, it computes all of them.

    Args:
        folder (`str` or `Path`): see [`VisionFeatures`].
        model (`PreTrainedModel` or `PeftModel`): a JinaVLM whose vision tower is frozen.
        rows (`Dataset`): rows that the collator takes.
        collator ([`DataCollatorForJinaVLM`]): the collator that training uses. Its attribute `vision_features` set to
            the result, its batches have `vision_features` in place of `pixel_values`.
        accelerator (`Accelerator`): that of the `Trainer`; it tells processes, device and mixed precision.
        batch_size, num_workers (`int`): number of rows at once, and of workers that prepare them.
        show_progress (`bool`): whether to show a progress bar.

    Raises:
        ValueError: if the vision tower is trainable or has dropout, the rows are a stream, or the folder holds the
            features of another tower or a damaged shard.
    """
    model = getattr(model, "get_base_model", lambda: model)()
    model = getattr(model, "model", model)
    if any(parameter.requires_grad for parameter in model.vision_tower.parameters()):
        raise ValueError(
            "Vision features cannot be kept: the vision tower is trained, adapters included, so they change. Freeze "
            'it: `freeze=["vision_tower"]`, or train without kept features.'
        )
    if model.config.vision_config.attention_dropout:
        raise ValueError(
            f"Vision features cannot be kept: `vision_config.attention_dropout` is "
            f"{model.config.vision_config.attention_dropout}, so they are random. Set it to 0."
        )
    if isinstance(rows, IterableDataset):
        raise ValueError("Vision features cannot be kept of a stream, whose rows are read once. Read it from disk.")
    is_fsdp = accelerator.distributed_type == DistributedType.FSDP
    num_shares = 1 if is_fsdp else accelerator.num_processes
    has_share = accelerator.process_index < num_shares
    with _whole_tower(model, accelerator.device) if has_share else nullcontext():
        settings = [tower_settings(model, accelerator.mixed_precision) if has_share else None]
        kept = VisionFeatures(folder, broadcast_object_list(settings)[0])
        if has_share:
            indices = getattr(rows, "distinct_rows", lambda: range(len(rows)))()
            loader = DataLoader(
                Subset(rows, indices[accelerator.process_index :: num_shares]),
                batch_size=batch_size,
                num_workers=num_workers,
                collate_fn=_NewTiles(collator, kept),
            )
            geometry = collator.processor.image_processor.geometry()
            blank = torch.zeros(3, geometry.tile_size, geometry.tile_size)  # of batches without images
            _encode(model, {digest(blank): blank}, kept, accelerator)
            is_hidden = not (show_progress and accelerator.is_main_process)
            for tiles in logging.tqdm(loader, desc="Vision features", unit="batch", disable=is_hidden):
                _encode(model, tiles, kept, accelerator)
            kept.flush()
    accelerator.wait_for_everyone()
    kept.refresh()
    return kept


@torch.no_grad()
def _encode(model: Any, tiles: dict[str, torch.Tensor], kept: VisionFeatures, accelerator: Accelerator) -> None:
    new = {key: tile for key, tile in tiles.items() if key not in kept}
    if new:
        with accelerator.autocast():
            pixel_values = torch.stack(list(new.values())).to(accelerator.device)
            features = model.get_vision_features(pixel_values).last_hidden_state
        for key, of_tile in zip(new, features, strict=True):
            kept.add(key, of_tile)


__all__ = ["VisionFeatures", "keep_vision_features", "tower_settings"]
