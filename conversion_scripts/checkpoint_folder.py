# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints on disk: finding, checking and loading them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoProcessor, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..configuration.checkpoint_files import check_files, listed, name_damaged_file, read_json, weight_files
from ..configuration.configuration_jvlm import JinaVLMConfig
from ..modeling.modeling_jvlm import JinaVLMForConditionalGeneration
from ..processing.processing_jvlm import JinaVLMProcessor
from ..processing.prompt_format import IMAGE_TOKENS
from ..published_format.published_schema import is_published_config


DTYPES = ("float32", "bfloat16", "float16")
MAX_SHARD_SIZE = "5GB"
# Start of the chat template in a folder that `export_to_hub` saved, if the processor adds a BOS token.
BOS_IN_TEMPLATE = "{{- bos_token or eos_token -}}"
# The files to download. Weights in other formats are not used.
CHECKPOINT_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.py", "README.md"]


def local_folder(checkpoint: str | Path) -> Path:
    """
    The folder of a checkpoint. A repository on the Hub is downloaded to the cache of huggingface_hub.

    Raises:
        OSError: if it is neither a folder nor a repository that can be downloaded.
        ValueError: if one of its JSON or safetensors files is damaged.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(checkpoint), allow_patterns=CHECKPOINT_FILES))
        except Exception as error:  # those of the connection have no common class
            raise OSError(
                f"{checkpoint} is neither a folder nor a repository on the Hub that can be downloaded: {error}"
            ) from error
    check_files(folder)
    return folder


@contextmanager
def loading(checkpoint: str | Path) -> Iterator[None]:
    """Raises a `ValueError` that names the checkpoint for the other errors that damaged settings cause."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{checkpoint} cannot be loaded ({type(error).__name__}: {error}).") from error


def read_config_file(folder: Path) -> dict:
    """The content of `config.json`."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint: it has no config.json.")
    return read_json(path)


def is_published(folder: Path) -> bool:
    """Whether a checkpoint is in the published format."""
    return is_published_config(read_config_file(folder).get("text_config"))


def existing_weight_files(folder: Path) -> dict[Path, list[str]]:
    """
    The safetensors files of a checkpoint, each with the weights that the index assigns to it.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the index is damaged or refers to files outside of the folder.
    """
    files = weight_files(folder)
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file.name} is missing in {folder}; weights are read from safetensors files only. Check that the "
                "download is complete."
            )
    return files


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """
    Names and shapes of a checkpoint's weights, read from the headers of its files.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged or lacks weights that the index assigns to it.
    """
    shapes = {}
    for file, names in existing_weight_files(folder).items():
        with name_damaged_file(folder), safe_open(file, framework="pt") as tensors:
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        if absent := set(names) - set(found):
            index = folder / SAFE_WEIGHTS_INDEX_NAME
            raise ValueError(f"{file} lacks weights that {index} assigns to it: {listed(absent)}.")
        shapes.update(found)
    return shapes


def read_tensors(folder: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, memory-mapped from its files."""
    wanted, tensors = set(names), {}
    for file in existing_weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            tensors.update({name: opened.get_tensor(name) for name in wanted.intersection(opened.keys())})
    return tensors


def empty_model(config: JinaVLMConfig) -> JinaVLMForConditionalGeneration:
    """A model on the meta device: its weights have shapes, but no values."""
    with torch.device("meta"):
        return JinaVLMForConditionalGeneration(config)


def to_published_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of a model in the published format, without the attention biases of the language model."""
    # `revert_weight_conversion` then reverts all conversions, not only those that loading used.
    model._weight_conversions = None
    weights = revert_weight_conversion(model, model.state_dict())
    weights["lm_head.weight"] = weights["lm_head.weight"][: model.config.image_start_token_id]
    biases = published_bias_shapes(model.config)
    return {name: weight for name, weight in weights.items() if name not in biases}


def unused_published_shapes(config: JinaVLMConfig, used: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published weights that no feature depends on: late vision blocks and the last norm."""
    vision = config.vision_config
    first_block = "model.vision_model.layers.0."
    shapes = {
        name.replace(first_block, f"model.vision_model.layers.{block}."): shape
        for block in range(config.num_vision_blocks, vision.num_hidden_layers)
        for name, shape in used.items()
        if name.startswith(first_block)
    }
    norm = "model.vision_model.post_lnorm"
    return {**shapes, f"{norm}.weight": (vision.hidden_size,), f"{norm}.bias": (vision.hidden_size,)}


def published_bias_shapes(config: JinaVLMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the language model's attention biases. Published files may contain them if they are zero."""
    text = config.text_config
    heads = {"q_b": text.num_attention_heads, "k_b": text.num_key_value_heads, "v_b": text.num_key_value_heads}
    return {
        f"model.language_model.layers.{block}.attn.{name}": (count * text.head_dim,)
        for block in range(text.num_hidden_layers)
        for name, count in heads.items()
    }


def check_weights(folder: Path, config: JinaVLMConfig) -> None:
    """
    Checks a checkpoint's weights against its configuration before any of them is loaded.

    Raises:
        ValueError: if weights are missing, unknown or of another shape, or if biases that Qwen3 does not have are
            not zero; the message names them.
    """
    found = read_shapes(folder)
    model = empty_model(config)
    published = is_published(folder)
    weights = to_published_weights(model) if published else model.state_dict()
    needed = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    optional, biases = {}, {}
    if config.tie_word_embeddings:
        optional["lm_head.weight"] = needed.pop("lm_head.weight")
    if published:
        biases = published_bias_shapes(config)
        optional.update(unused_published_shapes(config, needed) | biases)

    if missing := needed.keys() - found.keys():
        raise ValueError(f"{folder} lacks weights: {listed(missing)}. Check that the download is complete.")
    allowed = needed | optional
    if unknown := found.keys() - allowed.keys():
        raise ValueError(f"{folder} holds unknown weights: {listed(unknown)}.")
    for name, shape in found.items():
        if shape != allowed[name]:
            raise ValueError(
                f"{name} in {folder} has the shape {list(shape)}, but its config.json requires {list(allowed[name])}."
            )
    for name, tensor in read_tensors(folder, list(biases)).items():
        if tensor.any():
            raise ValueError(
                f"{name} in {folder} is not zero (up to {tensor.abs().max():.3g}), but Qwen3 has no such bias. "
                "The checkpoint needs other model code."
            )


def common_dtype(*folders: Path) -> str:
    """The smallest dtype that represents the weights of all folders, regardless of `dtype` in their config.json."""
    dtypes = [
        tensor.dtype for folder in folders for tensor in read_tensors(folder, list(read_shapes(folder))).values()
    ]
    return str(reduce(torch.promote_types, dtypes)).removeprefix("torch.")


def load_config(folder: Path) -> JinaVLMConfig:
    """The configuration of a JinaVLM checkpoint, without `auto_map`."""
    model_type = read_config_file(folder).get("model_type")
    if model_type != JinaVLMConfig.model_type:
        raise ValueError(f"{folder} is a {model_type!r} checkpoint, not one of JinaVLM.")
    with loading(folder):
        config = JinaVLMConfig.from_pretrained(folder)
    _remove_auto_map(config)
    return config


def load_model(folder: Path, dtype: str | None = None) -> JinaVLMForConditionalGeneration:
    """Checks and loads a checkpoint in either format. `dtype` defaults to the dtype of its weights."""
    config = load_config(folder)
    check_weights(folder, config)
    with loading(folder):
        dtype = dtype or common_dtype(folder)
        return JinaVLMForConditionalGeneration.from_pretrained(folder, config=config, dtype=dtype)


def load_processor(folder: Path, config: JinaVLMConfig, is_export: bool = False) -> JinaVLMProcessor:
    """
    Loads a checkpoint's processor, by default without what `export_to_hub` adds, see [`remove_export_additions`].

    Raises:
        ValueError: if it is of another class, or if its tokenizer's special tokens have other ids than in the
            configuration.
    """
    with loading(folder):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(processor, JinaVLMProcessor):
        raise ValueError(
            f"AutoProcessor finds a {type(processor).__name__} in {folder}. Set `processor_class` in its "
            "processor_config.json to 'JinaVLMProcessor'."
        )
    if not is_export:
        remove_export_additions(processor)
    check_special_tokens(processor.tokenizer, config.text_config, folder)
    names = ("image_start_token_id", "image_end_token_id", "image_token_id", "image_column_token_id")
    for token, name in zip(IMAGE_TOKENS, names, strict=False):
        token_id = processor.tokenizer.convert_tokens_to_ids(token)
        if token_id != getattr(config, name):
            raise ValueError(
                f"{token} has the id {token_id} in the tokenizer of {folder}, but `config.{name}` is "
                f"{getattr(config, name)}. Tokenizer and model must come from the same checkpoint."
            )
    if len(processor.tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer of {folder} has {len(processor.tokenizer)} tokens, but the model has only "
            f"{config.text_config.vocab_size} embeddings."
        )
    return processor


def remove_export_additions(processor: JinaVLMProcessor) -> None:
    """Removes `auto_map` and the BOS token in the chat template, which only belong into a folder with code."""
    for part in (processor, processor.image_processor):
        _remove_auto_map(part)
    processor.tokenizer.init_kwargs.pop("auto_map", None)
    edit_chat_template(processor, lambda template: template.removeprefix(BOS_IN_TEMPLATE))


def edit_chat_template(processor: JinaVLMProcessor, edit: Callable[[str], str]) -> None:
    """Applies a function to a processor's chat template, or to each of them if it has several."""
    given = processor.chat_template
    is_named = isinstance(given, dict)
    processor.chat_template = {name: edit(given[name]) for name in given} if is_named else edit(given)


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, folder: Path) -> None:
    """Raises `ValueError` if a special token id of a text configuration is not special in the tokenizer."""
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(token_id for token_id, token in added.items() if token.special)}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_ids = getattr(config, name)
        for token_id in token_ids if isinstance(token_ids, list) else [token_ids]:
            if token_id is not None and token_id not in special:
                raise ValueError(
                    f"`{name}` is {token_id} in the config.json of {folder}. In its tokenizer this is "
                    f"{tokenizer.convert_ids_to_tokens(token_id)!r}, which is not a special token, and "
                    f"{tokenizer.eos_token} has the id {tokenizer.eos_token_id}. Tokenizer and model must come "
                    "from the same checkpoint."
                )


def generation_config(
    config: JinaVLMConfig, tokenizer: PreTrainedTokenizerBase, folder: Path | None = None
) -> GenerationConfig:
    """
    The generation configuration: it sets the end tokens and suppresses the image tokens. Other settings are those of
    `generation_config.json` in `folder`, if there is one.
    """
    given = folder is not None and (folder / "generation_config.json").is_file()
    with loading(folder or ""):
        generation = GenerationConfig.from_pretrained(folder) if given else GenerationConfig()
    text = config.text_config
    eos = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    stops = dict.fromkeys(token_id for token_id in (*eos, tokenizer.eos_token_id) if token_id is not None)
    generation.eos_token_id = list(stops) if len(stops) > 1 else next(iter(stops), None)
    bos = text.bos_token_id if text.bos_token_id is not None else tokenizer.bos_token_id
    generation.bos_token_id = bos if bos is not None else tokenizer.eos_token_id
    generation.pad_token_id = text.pad_token_id if text.pad_token_id is not None else tokenizer.pad_token_id
    generation.suppress_tokens = config.tokens_to_suppress(generation.suppress_tokens)
    generation._from_model_config = False
    return generation


def _remove_auto_map(part) -> None:
    # It refers to code files that are not copied.
    if hasattr(part, "auto_map"):
        del part.auto_map
