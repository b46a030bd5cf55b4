# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Converts a checkpoint in the published format (`jinaai/jina-vlm`, weights CC BY-NC 4.0) to Transformers' format. With
--reverse, it converts to the published format, for the published remote code and other programs that read it.

    python -m jvlm.conversion_scripts.convert_release --checkpoint jinaai/jina-vlm --output jina-vlm --dtype bfloat16
    python -m jvlm.conversion_scripts.convert_release --reverse --checkpoint jina-vlm --output published

The published format has weights that the model does not use and Transformers' format does not store. With --source
they are copied from a checkpoint in the published format, otherwise they are saved as zeros. The program lists them.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from jvlm_cli.command_line import argument_parser, run

from ..configuration.checkpoint_files import listed
from ..configuration.configuration_jvlm import JinaVLMConfig
from ..processing.prompt_format import IMAGE_TOKENS
from ..published_format.published_schema import (
    NUM_ADDITIONAL_TOKENS,
    write_config,
    write_image_processor,
    write_processor,
)
from ..published_format.published_template import write_template
from .checkpoint_folder import (
    DTYPES,
    MAX_SHARD_SIZE,
    generation_config,
    is_published,
    load_config,
    load_model,
    load_processor,
    local_folder,
    published_bias_shapes,
    read_shapes,
    read_tensors,
    to_published_weights,
    unused_published_shapes,
)
from .model_card import write_model_card
from .output_folder import new_folder


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
    Converts between the published format and Transformers' format.

    Args:
        checkpoint (`str` or `Path`): folder or Hub id of the checkpoint to convert.
        output (`str` or `Path`): folder to create.
        dtype (`str`, *optional*): dtype of the weights, by default the checkpoint's.
        reverse (`bool`, *optional*): whether to convert to the published format.
        source (`str` or `Path`, *optional*): with `reverse`, folder or Hub id of a checkpoint in the published format.
            Its unused weights, and its code files if it has any, are copied.

    Returns:
        `Path`: `output`.

    Raises:
        ValueError: if the checkpoint is in the wrong format, incomplete, damaged or inconsistent, or has a setting
            that the other format cannot store.
        FileExistsError: if `output` exists.
    """
    output, folder = Path(output), local_folder(checkpoint)
    if is_published(folder) == reverse:
        raise ValueError(
            f"{checkpoint} is in the published format already."
            if reverse
            else f"{checkpoint} is in Transformers' format already; use --reverse for the published format."
        )
    if source is not None and not reverse:
        raise ValueError("--source requires --reverse.")
    if reverse:
        return _to_published(folder, output, dtype, local_folder(source) if source is not None else None)
    return _to_transformers(folder, output, dtype)


def _to_transformers(checkpoint: Path, output: Path, dtype: str | None) -> Path:
    processor = load_processor(checkpoint, load_config(checkpoint))
    model = load_model(checkpoint)
    if dtype:
        # Loading with a dtype needs more memory. Large weights come first, while there is memory for two copies.
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
            "`jinaai/jina-vlm`, or a model in its format, converted to Transformers' format.",
            LICENCE,
            license="cc-by-nc-4.0",
            base_model="jinaai/jina-vlm",
        )
    return output


def _to_published(checkpoint: Path, output: Path, dtype: str | None, source: Path | None) -> Path:
    config = load_config(checkpoint)
    _check_image_tokens(config)
    processor = load_processor(checkpoint, config)
    _check_added_tokens(config, processor.tokenizer)
    files = {
        "config.json": write_config(config),
        "preprocessor_config.json": write_image_processor(processor.image_processor, config),
        "processor_config.json": write_processor(processor),
    }
    model = load_model(checkpoint)
    target = getattr(torch, dtype) if dtype else model.dtype
    files["config.json"]["dtype"] = str(target).removeprefix("torch.")
    if (lost := model.lm_head.weight[-NUM_ADDITIONAL_TOKENS:].abs().max()) > 0:
        print(f"Dropped: the output head's rows of the image tokens (up to {lost:.3g}), which are never predicted.")
    weights = to_published_weights(model)
    _add_unused_weights(weights, config, source)

    with new_folder(output, sum(tensor.numel() for tensor in weights.values()) * target.itemsize) as folder:
        _save_weights(weights, folder, target)
        processor.chat_template = write_template(processor.chat_template)
        processor.save_pretrained(folder)
        _make_tokenizer_portable(folder / "tokenizer_config.json")
        if source is not None:
            _copy_code(source, folder, files)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        generation = generation_config(config, processor.tokenizer, checkpoint)
        # The published head has no rows for image tokens, so what is left are the user's own ids.
        is_row = range(config.image_start_token_id)
        generation.suppress_tokens = [token for token in generation.suppress_tokens if token in is_row] or None
        generation.save_pretrained(folder)
        licence = "The weights keep the licence of the checkpoint they come from."
        write_model_card(folder, checkpoint, output.name, "A JinaVLM in the format of `jinaai/jina-vlm`.", licence)
    return output


def _check_image_tokens(config: JinaVLMConfig) -> None:
    if config.layout != "stitched":
        raise ValueError(
            f'The layout of the published format is "stitched", but this checkpoint\'s is "{config.layout}".'
        )
    first = config.text_config.vocab_size - NUM_ADDITIONAL_TOKENS
    if config.image_start_token_id != first:
        raise ValueError(
            f"`config.image_start_token_id` is {config.image_start_token_id}, but must be {first}: in the published "
            f"format the image tokens are the first of {NUM_ADDITIONAL_TOKENS} tokens after the vocabulary."
        )


def _check_added_tokens(config: JinaVLMConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    first, known = config.image_start_token_id, {*IMAGE_TOKENS, "<im_slice>"}
    added = [token for token, token_id in tokenizer.get_vocab().items() if token_id >= first and token not in known]
    if added:
        raise ValueError(
            f"The tokenizer's {listed(added)} come after the vocabulary, where the published format has image tokens "
            "only: its output head could not generate them. Keep this checkpoint in Transformers' format."
        )


def _add_unused_weights(weights: dict[str, torch.Tensor], config: JinaVLMConfig, source: Path | None) -> None:
    """Adds and lists the weights that only the published format stores, from the source or as zeros."""
    if PAD_EMBED not in weights:
        weights[PAD_EMBED] = torch.zeros(2, config.feature_size)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    unused = unused_published_shapes(config, shapes)
    if source is None:
        weights.update({name: torch.zeros(shape) for name, shape in unused.items()})
        print(f"Saved as zeros: {PAD_EMBED} row 0, {', '.join(unused)}")
        return
    if not is_published(source):
        raise ValueError(f"{source} is not in the published format, but --source must be.")
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
    print(f"Copied from {source}: {PAD_EMBED} row 0, {', '.join(taken)}")


def _save_weights(weights: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Saves weights. Only one shard at a time is converted to the dtype."""
    shapes = {name: torch.empty(tensor.shape, dtype=dtype, device="meta") for name, tensor in weights.items()}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=MAX_SHARD_SIZE)
    for filename, names in logging.tqdm(split.filename_to_tensors.items(), desc="Writing model shards"):
        shard = {name: weights.pop(name).to(dtype).contiguous() for name in names}
        save_file(shard, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


def _make_tokenizer_portable(path: Path) -> None:
    # The published code needs Transformers 4, which does not know the class name that Transformers 5 saves.
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _copy_code(source: Path, folder: Path, files: dict[str, dict]) -> None:
    code = list(source.glob("*.py"))
    for file in code:
        shutil.copyfile(file, folder / file.name)
    for name, content in files.items():
        given = json.loads((source / name).read_text(encoding="utf-8"))
        if code and "auto_map" in given:
            content["auto_map"] = given["auto_map"]


def main(argv: list[str] | None = None) -> None:
    parser = argument_parser("jvlm convert", __doc__)
    parser.add_argument("--checkpoint", required=True, metavar="ID", help="folder or Hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the weights; the checkpoint's when not given")
    parser.add_argument("--reverse", action="store_true", help="convert to the published format")
    parser.add_argument("--source", metavar="ID", help="with --reverse: checkpoint to copy the unused weights from")
    print(f"Saved: {run(parser, convert_release, argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
