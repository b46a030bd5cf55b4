# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Composes a JinaVLM for training from a SigLIP or SigLIP2 checkpoint and a Qwen3 checkpoint.

Encoder and decoder keep their weights. The connector is new. Its matrices are initialized from LeCun's normal
distribution, whose variance is the inverse of the input width, so that features keep their scale. Its biases and the
embedding of the last tile are zero. The vocabulary is extended by the image tokens and padded to a multiple of 128.
The new rows of the input embeddings are the mean of the old rows plus noise of 2 % of their standard deviation. Those
of an untied output head are zero, as in the published checkpoint: `generate` leaves them out.

    python -m jvlm.conversion_scripts.compose_from_pretrained \\
        --vision google/siglip2-so400m-patch14-384 --decoder Qwen/Qwen3-1.7B-Base --output my-jina-vlm
"""

import copy
import sys
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils import logging

from jvlm_cli.command_line import argument_parser, run

from ..configuration.configuration_jvlm import JinaVLMConfig
from ..modeling.modeling_jvlm import JinaVLMConnector
from ..processing.image_processing_jvlm import JinaVLMImageProcessor
from ..processing.processing_jvlm import JinaVLMProcessor
from ..processing.prompt_format import IMAGE_TOKENS, add_image_tokens
from .checkpoint_folder import (
    DTYPES,
    MAX_SHARD_SIZE,
    check_special_tokens,
    common_dtype,
    empty_model,
    generation_config,
    listed,
    loading,
    local_folder,
    read_shapes,
)
from .model_card import write_model_card
from .output_folder import new_folder


logger = logging.get_logger(__name__)

VOCABULARY_MULTIPLE = 128
# As in the figure of the paper: third- and ninth-to-last block.
FEATURE_LAYERS = [-3, -9]


class _Encoder(SiglipVisionModel):
    """SigLIP's vision tower. Loading ignores all other weights of a checkpoint."""

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_", r"^(vision_model\.)?(head|encoder\.layers)\."]


def compose_from_pretrained(
    vision: str | Path,
    decoder: str | Path,
    output: str | Path,
    layout: str = "independent",
    dtype: str | None = None,
    tile_size: int | None = None,
    vision_feature_layer: list[int] | None = None,
    tie_word_embeddings: bool = False,
    seed: int = 0,
) -> Path:
    """
    Composes a checkpoint with a new connector from a vision encoder and a language model.

    Args:
        vision (`str` or `Path`): folder or Hub id of a SigLIP or SigLIP2 checkpoint in Transformers' format.
        decoder (`str` or `Path`): folder or Hub id of a Qwen3 checkpoint, with its tokenizer.
        output (`str` or `Path`): folder to create.
        layout (`str`, *optional*): `"independent"` or `"stitched"`, see [`JinaVLMConfig`].
        dtype (`str`, *optional*): dtype of the weights. By default that of the sources, or, if they differ, one
            that represents the values of both.
        tile_size (`int`, *optional*): side of a tile in pixels; by default the encoder's, in whole patches. The
            encoder's position embeddings are interpolated to any other size.
        vision_feature_layer (`list[int]`, *optional*): blocks that feed the connector, by default the third- and the
            ninth-to-last.
        tie_word_embeddings (`bool`, *optional*): whether to keep the input and output embeddings tied, for a decoder
            that ties them. By default the output head gets a copy.
        seed (`int`, *optional*): seed of the new weights.

    Returns:
        `Path`: `output`, with configuration, weights, tokenizer, processor, chat template, generation configuration
        and model card.

    Raises:
        ValueError: if the checkpoints are of other models, incomplete, damaged or inconsistent.
        FileExistsError: if `output` exists.
    """
    output = Path(output)
    vision_folder, decoder_folder = local_folder(vision), local_folder(decoder)
    vision_config, text_config = _vision_config(vision_folder), _text_config(decoder_folder)
    with loading(decoder_folder):
        tokenizer = AutoTokenizer.from_pretrained(decoder_folder)
    check_special_tokens(tokenizer, text_config, decoder_folder)
    config = _compose_config(
        vision_config, text_config, tokenizer, layout, tile_size, vision_feature_layer, tie_word_embeddings
    )
    dtype = dtype or common_dtype(vision_folder, decoder_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _compose_model(vision_folder, vision_config, decoder_folder, config, dtype)
    model.generation_config = generation_config(config, tokenizer)
    with new_folder(output, model.num_parameters() * model.dtype.itemsize) as folder:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        _compose_processor(config, vision_folder, tokenizer).save_pretrained(folder)
        write_model_card(
            folder,
            None,
            output.name,
            f"A JinaVLM composed of `{_name(vision)}` and `{_name(decoder)}`, layout `{layout}`. **Its connector is "
            "new: it understands no images before it is trained.**",
            f"The weights keep the licences of `{_name(vision)}` and `{_name(decoder)}`.",
            base_model=[str(source) for source in (vision, decoder) if not Path(source).exists()] or None,
        )
    return output


def _name(checkpoint: str | Path) -> str:
    # The model card must not contain local paths.
    return Path(checkpoint).name if Path(checkpoint).exists() else str(checkpoint)


def _vision_config(folder: Path) -> SiglipVisionConfig:
    with loading(folder):
        config = AutoConfig.from_pretrained(folder)
    config = config.vision_config if isinstance(config, SiglipConfig) else config
    if not isinstance(config, SiglipVisionConfig):
        raise ValueError(
            f"{folder} is a {config.model_type!r} checkpoint; --vision takes SigLIP or SigLIP2 with a fixed "
            "resolution in Transformers' format, such as google/siglip2-so400m-patch14-384."
        )
    return config


def _text_config(folder: Path) -> Qwen3Config:
    with loading(folder):
        config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, Qwen3Config):
        raise ValueError(f"{folder} is a {config.model_type!r} checkpoint; --decoder takes Qwen3.")
    return config


def _compose_config(
    vision: SiglipVisionConfig, text: Qwen3Config, tokenizer, layout, tile_size, blocks, tie_word_embeddings
) -> JinaVLMConfig:
    """The configuration; adds the image tokens to the tokenizer."""
    if len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"The decoder's tokenizer has {len(tokenizer)} tokens, but its config.json has only {text.vocab_size} "
            "embeddings. They must come from the same checkpoint."
        )
    if tie_word_embeddings and not text.tie_word_embeddings:
        raise ValueError("The decoder's input and output embeddings are different weights, which cannot be tied.")
    blocks = FEATURE_LAYERS if blocks is None else blocks
    num_blocks = vision.num_hidden_layers
    if any(not -num_blocks <= block < num_blocks for block in blocks):
        raise ValueError(
            f"The connector reads blocks {blocks}, but the encoder has only {num_blocks}; choose others with "
            "--vision_feature_layer."
        )
    add_image_tokens(tokenizer, first_token_id=text.vocab_size)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    num_tokens = max(len(tokenizer), text.vocab_size)
    ids = dict(zip(IMAGE_TOKENS, tokenizer.convert_tokens_to_ids(IMAGE_TOKENS), strict=True))

    given = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    stops = {*given, tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")} - {None}
    text = copy.deepcopy(text)
    text.architectures = None
    text.vocab_size = -(-num_tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    text.eos_token_id = sorted(stops)
    text.pad_token_id = tokenizer.pad_token_id
    text.bos_token_id = tokenizer.bos_token_id if text.bos_token_id is None else text.bos_token_id
    text.tie_word_embeddings = tie_word_embeddings

    vision = copy.deepcopy(vision)
    # The configuration must not contain local paths.
    vision.name_or_path = text.name_or_path = ""
    # The encoder ignores pixels beyond the last whole patch: of 384 it uses 27 patches of 14, which are 378.
    tile_size = tile_size or vision.image_size // vision.patch_size * vision.patch_size
    vision.image_size = tile_size
    return JinaVLMConfig(
        vision_config=vision,
        text_config=text,
        layout=layout,
        vision_feature_layer=blocks,
        connector_num_attention_heads=vision.num_attention_heads,
        connector_head_dim=vision.hidden_size // vision.num_attention_heads,
        connector_intermediate_size=text.intermediate_size,
        image_start_token_id=ids["<im_start>"],
        image_end_token_id=ids["<im_end>"],
        image_token_id=ids["<im_patch>"],
        image_column_token_id=ids["<im_col>"],
        tie_word_embeddings=tie_word_embeddings,
    )


def _compose_model(
    vision_folder: Path, vision: SiglipVisionConfig, decoder_folder: Path, config: JinaVLMConfig, dtype
):
    """The model. Weights that do not change stay memory-mapped until they are saved."""
    model = empty_model(config)
    connector = JinaVLMConnector(config).apply(model._init_weights).to(getattr(torch, dtype))
    weights = {
        **_vision_weights(vision_folder, vision, config, dtype),
        **{f"model.connector.{name}": tensor for name, tensor in connector.state_dict().items()},
        **_text_weights(decoder_folder, config, dtype),
    }
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model


def _compose_processor(config: JinaVLMConfig, vision_folder: Path, tokenizer) -> JinaVLMProcessor:
    patches = config.patches_per_side
    # 4 of 27 patches on each side, as in the figure of the paper.
    margin = round(patches * 4 / 27)
    settings = {}
    if (vision_folder / "preprocessor_config.json").is_file():
        with loading(vision_folder):
            given, _ = JinaVLMImageProcessor.get_image_processor_dict(vision_folder)
            settings = {name: given[name] for name in ("image_mean", "image_std") if name in given}
    stitched = config.layout == "stitched"
    image_processor = JinaVLMImageProcessor(
        layout=config.layout,
        size={"height": config.vision_config.image_size, "width": config.vision_config.image_size},
        patch_size=config.vision_config.patch_size,
        overlap_margins=[margin, margin],
        pooling_size=config.pooling_size,
        do_resize=stitched,
        **settings,
    )
    # The stitched layout has the initial resize and the BOS token of the published checkpoint.
    return JinaVLMProcessor(image_processor, tokenizer, add_bos_token=stitched)


def _load_part(model_class: type[PreTrainedModel], folder: Path, config, dtype: str) -> PreTrainedModel:
    """Loads a source and raises an error for missing weights, which Transformers would initialize."""
    read_shapes(folder)
    with loading(folder):
        model, info = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{name} in {folder} has the shape {list(found)}, but its config.json requires {list(expected)}."
        )
    if info["missing_keys"]:
        missing = listed(info["missing_keys"])
        raise ValueError(f"{folder} lacks weights: {missing}. Check that the download is complete.")
    return model


def _vision_weights(folder: Path, source: SiglipVisionConfig, config: JinaVLMConfig, dtype: str) -> dict:
    source = copy.deepcopy(source)
    source.num_hidden_layers = config.num_vision_blocks
    source.vision_use_head = False
    vision = _load_part(_Encoder, folder, source, dtype)
    weights = vision.state_dict()
    side, size = config.vision_config.image_size, vision.embeddings.position_embedding.weight.shape[0]
    if size != config.patches_per_side**2:
        logger.warning(
            f"{folder} has {size} position embeddings; they are interpolated to the "
            f"{config.patches_per_side} × {config.patches_per_side} patches of a tile."
        )
        patches = torch.empty(1, config.patches_per_side**2, source.hidden_size)
        embeddings = vision.embeddings.float().interpolate_pos_encoding(patches, side, side)
        weights["embeddings.position_embedding.weight"] = embeddings[0].detach().to(getattr(torch, dtype))
    return {
        f"model.vision_tower.{name}": tensor
        for name, tensor in weights.items()
        if not name.startswith("post_layernorm.")
    }


def _text_weights(folder: Path, config: JinaVLMConfig, dtype: str) -> dict:
    decoder = _load_part(Qwen3ForCausalLM, folder, None, dtype)
    weights = {f"model.language_model.{name}": tensor for name, tensor in decoder.model.state_dict().items()}
    table = _with_new_rows(decoder.get_input_embeddings().weight.detach(), config.text_config.vocab_size)
    weights["model.language_model.embed_tokens.weight"] = weights["lm_head.weight"] = table
    if not config.tie_word_embeddings:
        head = decoder.get_output_embeddings().weight.detach()
        weights["lm_head.weight"] = torch.cat([head, head.new_zeros(len(table) - len(head), head.shape[1])])
    return weights


def _with_new_rows(table: torch.Tensor, num_rows: int) -> torch.Tensor:
    # Not with `resize_token_embeddings`: bfloat16 rounds its noise away, and all new rows would be equal.
    grown = table.new_empty(num_rows, table.shape[1])
    grown[: len(table)] = table
    values = table.float()
    noise = 0.02 * values.std() * torch.randn(num_rows - len(table), table.shape[1])
    grown[len(table) :] = values.mean(dim=0) + noise
    return grown


def main(argv: list[str] | None = None) -> None:
    parser = argument_parser("jvlm compose", __doc__)
    parser.add_argument("--vision", required=True, metavar="ID", help="SigLIP or SigLIP2: folder or Hub id")
    parser.add_argument("--decoder", required=True, metavar="ID", help="Qwen3: folder or Hub id")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--layout", choices=("independent", "stitched"), default="independent")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the weights; the sources' when not given")
    parser.add_argument("--tile_size", type=int, metavar="N", help="side of a tile in pixels; the encoder's if absent")
    parser.add_argument(
        "--vision_feature_layer",
        type=int,
        nargs="+",
        metavar="N",
        help="blocks that feed the connector; the third- and the ninth-to-last when not given",
    )
    parser.add_argument("--tie_word_embeddings", action="store_true", help="keep tied embeddings tied")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new weights")
    print(f"Saved: {run(parser, compose_from_pretrained, argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
