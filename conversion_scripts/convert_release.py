# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Converts a checkpoint in the published layout (`jinaai/jina-vlm`, weights CC BY-NC 4.0) to Transformers' layout, or,
with --reverse, one of ours to the published layout, for the published remote code and the ports that read it.

    python -m jvlm.conversion_scripts.convert_release --checkpoint jinaai/jina-vlm --output jina-vlm --dtype bfloat16
    python -m jvlm.conversion_scripts.convert_release --reverse --checkpoint jina-vlm --output published

The published layout has tensors that no feature comes from. With --source they are taken from a checkpoint that has
them, without they are written as zeros; either way they are listed.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from ..configuration.configuration_jvlm import JinaVLMConfig
from ..published_format.published_schema import (
    NUM_ADDITIONAL_TOKENS,
    write_config,
    write_image_processor,
    write_processor,
)
from .checkpoint_folder import (
    DTYPES,
    MAX_SHARD_SIZE,
    generation_config,
    is_published,
    load_config,
    load_model,
    load_processor,
    local_folder,
    new_folder,
    published_bias_shapes,
    read_shapes,
    read_tensors,
    run,
    to_published_weights,
    unused_published_shapes,
)
from .model_card import write_model_card


LICENCE = "The weights are those of `jinaai/jina-vlm` or derived from them: CC BY-NC 4.0, no commercial use."
PAD_EMBED = "model.vision_model.vl_connector.pad_embed"


def convert_release(
    checkpoint: str | Path,
    output: str | Path,
    dtype: str | None = None,
    reverse: bool = False,
    source: str | Path | None = None,
) -> Path:
    """
    Converts between the published layout and Transformers'.

    Args:
        checkpoint (`str` or `Path`): folder or Hub id of the checkpoint to convert.
        output (`str` or `Path`): folder to create.
        dtype (`str`, *optional*): dtype of the weights, by default the checkpoint's.
        reverse (`bool`, *optional*): from ours to the published layout.
        source (`str` or `Path`, *optional*): with `reverse`, folder or Hub id of a checkpoint in the published layout
            to take from what ours does not keep: unused tensors, and code files if it has any.

    Returns:
        `Path`: `output`.

    Raises:
        ValueError: if the checkpoint is in the wrong layout, incomplete, damaged, contradicts itself, or has something
            that the other layout cannot express.
        FileExistsError: if `output` exists.
    """
    output, folder = Path(output), local_folder(checkpoint)
    if is_published(folder) == reverse:
        raise ValueError(
            f"{checkpoint} is in the published layout already."
            if reverse
            else f"{checkpoint} is in Transformers' layout already; to convert it to the published one, use --reverse."
        )
    if source is not None and not reverse:
        raise ValueError("--source goes with --reverse only.")
    if reverse:
        return _to_published(folder, output, dtype, source and local_folder(source))
    return _to_transformers(folder, output, dtype)


def _to_transformers(checkpoint: Path, output: Path, dtype: str | None) -> Path:
    processor = load_processor(checkpoint, load_config(checkpoint))
    model = load_model(checkpoint)
    if dtype:
        # Not while loading, where both types would be held; the large ones first, while there is room for two of them.
        parameters = sorted(model.parameters(), key=torch.numel, reverse=True)
        for parameter in logging.tqdm(parameters, desc=f"Converting to {dtype}"):
            parameter.data = parameter.data.to(getattr(torch, dtype))
    model.generation_config = generation_config(model.config, processor.tokenizer, checkpoint)
    with new_folder(output, model.num_parameters() * model.dtype.itemsize) as folder:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        processor.save_pretrained(folder)
        write_model_card(
            folder,
            None,
            output.name,
            "`jinaai/jina-vlm`, or a model in its layout, converted to Transformers' layout.",
            LICENCE,
            license="cc-by-nc-4.0",
            base_model="jinaai/jina-vlm",
        )
    return output


def _to_published(checkpoint: Path, output: Path, dtype: str | None, source: Path | None) -> Path:
    config = load_config(checkpoint)
    _check_image_tokens(config)
    processor = load_processor(checkpoint, config)
    files = {
        "config.json": write_config(config),
        "preprocessor_config.json": write_image_processor(processor.image_processor, config),
        "processor_config.json": write_processor(processor),
    }
    model = load_model(checkpoint)
    target = getattr(torch, dtype) if dtype else model.dtype
    files["config.json"]["dtype"] = str(target).removeprefix("torch.")
    if (lost := model.lm_head.weight[-NUM_ADDITIONAL_TOKENS:].abs().max()) > 0:
        print(f"Left out: the output head's rows of the image tokens (up to {lost:.3g}), which are never predicted.")
    weights = to_published_weights(model)
    _add_unused_weights(weights, config, source)

    with new_folder(output, sum(tensor.numel() for tensor in weights.values()) * target.itemsize) as folder:
        _save_weights(weights, folder, target)
        processor.save_pretrained(folder)
        _make_tokenizer_portable(folder / "tokenizer_config.json")
        if source is not None:
            _take_code(source, folder, files)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        generation = generation_config(config, processor.tokenizer, checkpoint)
        generation.suppress_tokens = None  # the published head does not reach them
        generation.save_pretrained(folder)
        licence = "The weights keep the licence of the checkpoint they come from."
        write_model_card(folder, checkpoint, output.name, "A JinaVLM in the layout of `jinaai/jina-vlm`.", licence)
    return output


def _check_image_tokens(config: JinaVLMConfig) -> None:
    if config.layout != "stitched":
        raise ValueError(f'The published layout is "stitched", but this checkpoint\'s is "{config.layout}".')
    first = config.text_config.vocab_size - NUM_ADDITIONAL_TOKENS
    if config.image_start_token_id != first:
        raise ValueError(
            f"`config.image_start_token_id` is {config.image_start_token_id}, but in the published layout the image "
            f"tokens are the first of {NUM_ADDITIONAL_TOKENS} behind the vocabulary: {first} here."
        )


def _add_unused_weights(weights: dict[str, torch.Tensor], config: JinaVLMConfig, source: Path | None) -> None:
    """Adds what the published layout has and ours does not keep, from the source or as zeros, and says so."""
    if PAD_EMBED not in weights:
        size = config.vision_config.hidden_size * len(config.vision_feature_layer)
        weights[PAD_EMBED] = torch.zeros(2, size)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    unused = unused_published_shapes(config, shapes)
    if source is None:
        weights.update({name: torch.zeros(shape) for name, shape in unused.items()})
        print(f"Written as zeros: {PAD_EMBED} row 0, {', '.join(unused)}")
        return
    if not is_published(source):
        raise ValueError(f"{source} is not in the published layout; --source must be.")
    found = read_shapes(source)
    allowed = shapes | unused | published_bias_shapes(config)
    for name in sorted(found.keys() | shapes.keys()):
        if found.get(name) != allowed.get(name):
            raise ValueError(
                f"{name} has the shape {found.get(name)} in {source}, but {allowed.get(name)} in this checkpoint: "
                "--source must be of the same architecture."
            )
    taken = read_tensors(source, [PAD_EMBED, *(found.keys() - shapes.keys())])
    pad_embed = weights[PAD_EMBED]
    weights[PAD_EMBED] = torch.stack([taken.pop(PAD_EMBED)[0].to(pad_embed.dtype), pad_embed[1]])
    weights.update(taken)
    print(f"Taken from {source}: {PAD_EMBED} row 0, {', '.join(taken)}")


def _save_weights(weights: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Writes weights shard by shard; only one shard at a time is converted."""
    shapes = {name: torch.empty(tensor.shape, dtype=dtype, device="meta") for name, tensor in weights.items()}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=MAX_SHARD_SIZE)
    for filename, names in logging.tqdm(split.filename_to_tensors.items(), desc="Writing model shards"):
        shard = {name: weights.pop(name).to(dtype).contiguous() for name in names}
        save_file(shard, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


def _make_tokenizer_portable(path: Path) -> None:
    # Transformers 4, which the published code needs, does not know the name that Transformers 5 writes.
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _take_code(source: Path, folder: Path, files: dict[str, dict]) -> None:
    code = list(source.glob("*.py"))
    for file in code:
        shutil.copyfile(file, folder / file.name)
    for name, content in files.items():
        given = json.loads((source / name).read_text(encoding="utf-8"))
        if code and "auto_map" in given:
            content["auto_map"] = given["auto_map"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="convert_release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="ID", help="folder or Hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the weights; the checkpoint's when not given")
    parser.add_argument("--reverse", action="store_true", help="from our layout to the published one")
    parser.add_argument("--source", metavar="ID", help="with --reverse: where to take what our layout does not keep")
    print(f"Written: {run(parser, convert_release, argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
