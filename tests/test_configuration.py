# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""The configuration: the figure's numbers, the published schema, validation, and the sizes that follow."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen3Config, SiglipVisionConfig

from jvlm import JinaVLMConfig


UNUSED_NORM = {"type": "default", "eps": None, "bias": None, "with_affine": True}


def attention(n_heads: int, n_kv_heads: int | None, head_dim: int, bias: bool, norm: dict | None = None) -> dict:
    return {
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        **dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), bias),
        **dict.fromkeys(("q_lnorm", "k_lnorm", "qkv_lnorm_on_heads"), norm is not None),
        "lnorm_config": norm or UNUSED_NORM,
        "inner_lnorm": False,
        "o_lnorm": False,
        "v_lnorm": False,
        "clip_qkv": None,
        "dropout": 0.0,
        "fp32": False,
        "sliding_window": -1,
        "softmax_scale": None,
    }


def feed_forward(size: int, activation: str, gated: bool, bias: bool) -> dict:
    return {
        "size": size,
        "ratio": 4,
        "activation_type": activation,
        "gated_activation": gated,
        "bias": bias,
        "inner_lnorm": False,
        "lnorm_config": UNUSED_NORM,
    }


def block(attn_config: dict, ffn_config: dict, norm: dict) -> dict:
    return {
        "attn_config": attn_config,
        "ffn_config": ffn_config,
        "lnorm_config": norm,
        "attn_lscale_init": None,
        "ffn_lscale_init": None,
        "postnorm": False,
        "residual_dropout": 0.0,
        "residual_path_dropout": 0.0,
        "residual_response_dropout": 0.0,
    }


def published_config() -> dict:
    """The config.json of the published checkpoint, of 2,481,141,616 parameters."""
    rms_norm = {"type": "rms", "eps": 1e-6, "bias": False, "with_affine": True}
    layer_norm = {"type": "default", "eps": 1e-6, "bias": True, "with_affine": True}
    return {
        "model_type": "jvlm",
        "architectures": ["JinaVLMForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_jvlm.JinaVLMConfig",
            "AutoModel": "modeling_jvlm.JinaVLM",
            "AutoModelForCausalLM": "modeling_jvlm.JinaVLMForConditionalGeneration",
        },
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
        "dtype": "float32",
        "transformers_version": "4.57.6",
        "text_config": {
            "model_type": "jvlm",
            "n_layers": 28,
            "num_hidden_layers": 28,
            "hidden_size": 2048,
            "block_config": block(
                attention(16, 8, 128, False, rms_norm), feed_forward(6144, "silu", True, False), rms_norm
            ),
            "rope": True,
            "rope_theta": 1_000_000.0,
            "rope_scaling": None,
            "partial_rotary_factor": 1.0,
            "max_sequence_length": 40960,
            "max_position_embeddings": None,
            "vocab_size": 151936,
            "embedding_size": 151936,
            "additional_vocab_size": 128,
            "embedding_dropout": 0.0,
            "normalize_input_embeds": False,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "jvlm",
            "n_layers": 27,
            "hidden_size": 1152,
            "input_size": [378, 378],
            "patch_size": 14,
            "n_channels": 3,
            "block_config": block(
                attention(16, None, 72, True), feed_forward(4304, "gelu_pytorch_tanh", False, True), layer_norm
            ),
            "use_cls_token": False,
            "pre_lnorm": False,
            "post_lnorm": True,
            "linear_patch_embedding": True,
            "patch_embedding_bias": True,
            "patch_dropout": 0.0,
            "positional_interpolation": "bicubic",
            "use_absolute_positional_embeddings": True,
            "vit_layers": [-4, -10],
            "output_size": 2048,
            "vl_connector_config": {
                "pooling_type": "attention_meanq",
                "pooling_h": 2,
                "pooling_w": 2,
                "spatial_merge_size": 2,
                "padding_embed_type": "pad_and_partial_pad",
                "attn_pooling_config": attention(16, None, 72, True),
                "projector_type": "mlp",
                "mlp_projector_config": feed_forward(6144, "silu", True, False),
                "feature_dropout": 0.0,
                "projector_dropout": 0.0,
            },
        },
    }


def test_defaults_are_the_figure():
    config = JinaVLMConfig()
    vision, text = config.vision_config, config.text_config
    assert isinstance(vision, SiglipVisionConfig)
    assert (vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size) == (27, 1152, 4304)
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size) == (16, 378, 14)
    assert isinstance(text, Qwen3Config)
    assert (text.num_hidden_layers, text.hidden_size, text.intermediate_size) == (28, 2048, 6144)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (16, 8, 128)
    assert text.rope_parameters["rope_theta"] == 1e6
    # The figure's 151936 and 128 rows for the image tokens.
    assert text.vocab_size == 151936 + 128
    assert config.layout == "independent"
    assert config.vision_feature_layer == [24, 18]
    assert config.pooled_grid == [13, 14]
    assert config.patches_per_side == 27
    assert (config.connector_num_attention_heads, config.connector_head_dim) == (16, 72)
    assert config.connector_intermediate_size == 6144
    assert config.tie_word_embeddings is False
    assert config.use_last_tile_embedding is False
    markers = (config.image_start_token_id, config.image_end_token_id)
    assert (*markers, config.image_token_id, config.image_column_token_id) == (151936, 151937, 151938, 151939)


def test_layout_sets_defaults_of_grid_and_embedding():
    config = JinaVLMConfig(layout="stitched")
    assert config.pooled_grid == [14, 14]
    assert config.use_last_tile_embedding is True
    config = JinaVLMConfig(layout="stitched", use_last_tile_embedding=False)
    assert config.use_last_tile_embedding is False


def test_feature_blocks_count_from_either_end():
    assert JinaVLMConfig(vision_feature_layer=[-3, -9]).vision_feature_layer == [24, 18]
    assert JinaVLMConfig(vision_feature_layer=[0]).vision_feature_layer == [0]


def test_published_config_of_full_size():
    config = JinaVLMConfig(**published_config())
    assert config.layout == "stitched"
    assert config.vision_feature_layer == [24, 18]
    assert config.pooled_grid == [14, 14]
    assert config.use_last_tile_embedding is True
    # It differs from the system of the figure only in its layout.
    assert config.to_diff_dict().get("text_config") == JinaVLMConfig().to_diff_dict().get("text_config")
    figure, released = JinaVLMConfig(layout="stitched").to_dict(), config.to_dict()
    for name in ("architectures", "dtype", "transformers_version", "auto_map"):
        figure.pop(name, None)
        released.pop(name, None)
    assert released == figure
    assert config.text_config.eos_token_id == [151643, 151645]
    assert config.text_config.vocab_size == 152064


def test_published_config_of_the_fixture(release):
    config = AutoConfig.from_pretrained(release / "checkpoint")
    assert type(config) is JinaVLMConfig
    vision, text = config.vision_config, config.text_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size) == (11, 32, 112)
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size) == (2, 378, 14)
    assert (text.num_hidden_layers, text.hidden_size, text.intermediate_size) == (3, 64, 144)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (4, 2, 16)
    assert (text.vocab_size, text.max_position_embeddings) == (640, 40960)
    assert text.rope_parameters["rope_theta"] == 1e6
    # The list that [-4, -10] indexes has one entry more than there are blocks.
    assert config.vision_feature_layer == [12 - 4, 12 - 10]
    assert (config.connector_num_attention_heads, config.connector_head_dim) == (2, 16)
    assert config.connector_intermediate_size == 96
    markers = (config.image_start_token_id, config.image_end_token_id)
    assert (*markers, config.image_token_id, config.image_column_token_id) == (512, 513, 514, 515)


def test_published_token_id_zero():
    published = {**published_config(), "eos_token_id": 0, "pad_token_id": 0}
    config = JinaVLMConfig(**published)
    assert (config.text_config.eos_token_id, config.text_config.pad_token_id) == (0, 0)
    assert config.text_config.bos_token_id == 151643


def test_feed_forward_width_from_ratio():
    published = published_config()
    published["text_config"]["block_config"]["ffn_config"].update(size=None, ratio=3)
    assert JinaVLMConfig(**published).text_config.intermediate_size == 3 * 2048


@pytest.mark.parametrize("kind", ["figure", "small", "translated"])
def test_save_and_load(kind, build_config, tmp_path):
    config = {
        "figure": JinaVLMConfig,
        "small": lambda: build_config("stitched", vision_feature_layer=[-1, 0], tie_word_embeddings=True),
        "translated": lambda: JinaVLMConfig(**published_config()),
    }[kind]()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is JinaVLMConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "jvlm"
    assert saved["vision_config"]["model_type"] == "siglip_vision_model"
    assert saved["text_config"]["model_type"] == "qwen3"
    assert "block_config" not in saved["text_config"]


def test_translation_does_not_change_its_input():
    published = published_config()
    before = copy.deepcopy(published)
    JinaVLMConfig.from_dict(published)
    assert published == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vision_config.use_cls_token", True),
        ("vision_config.pre_lnorm", True),
        ("vision_config.linear_patch_embedding", False),
        ("vision_config.patch_embedding_bias", False),
        ("vision_config.patch_dropout", 0.1),
        ("vision_config.use_absolute_positional_embeddings", False),
        ("vision_config.vit_layers", [-1, -10]),
        ("vision_config.vit_layers", [100, -50]),
        ("vision_config.input_size", [378, 392]),
        ("vision_config.output_size", 1024),
        ("vision_config.block_config.postnorm", True),
        ("vision_config.block_config.attn_lscale_init", 1e-5),
        ("vision_config.block_config.ffn_lscale_init", 1e-5),
        ("vision_config.block_config.residual_dropout", 0.1),
        ("vision_config.block_config.attn_config.clip_qkv", 8.0),
        ("vision_config.block_config.attn_config.sliding_window", 128),
        ("vision_config.block_config.attn_config.inner_lnorm", True),
        ("vision_config.block_config.attn_config.q_lnorm", True),
        ("vision_config.block_config.attn_config.n_kv_heads", 8),
        ("vision_config.block_config.attn_config.head_dim", 64),
        ("vision_config.block_config.attn_config.k_bias", False),
        ("vision_config.block_config.attn_config.softmax_scale", 0.5),
        ("vision_config.block_config.ffn_config.activation_type", "gelu"),
        ("vision_config.block_config.ffn_config.gated_activation", True),
        ("vision_config.block_config.ffn_config.inner_lnorm", True),
        ("vision_config.block_config.lnorm_config.type", "rms"),
        ("vision_config.block_config.lnorm_config.eps", 1e-5),
        ("vision_config.vl_connector_config.pooling_type", "attention"),
        ("vision_config.vl_connector_config.padding_embed_type", "regress"),
        ("vision_config.vl_connector_config.projector_type", "linear"),
        ("vision_config.vl_connector_config.pooling_h", 3),
        ("vision_config.vl_connector_config.feature_dropout", 0.1),
        ("vision_config.vl_connector_config.attn_pooling_config.n_kv_heads", 4),
        ("vision_config.vl_connector_config.attn_pooling_config.clip_qkv", 8.0),
        ("vision_config.vl_connector_config.mlp_projector_config.bias", True),
        ("vision_config.vl_connector_config.mlp_projector_config.activation_type", "gelu"),
        ("text_config.rope", False),
        ("text_config.rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("text_config.partial_rotary_factor", 0.5),
        ("text_config.normalize_input_embeds", True),
        ("text_config.embedding_size", 152000),
        ("text_config.additional_vocab_size", 64),
        ("text_config.block_config.postnorm", True),
        ("text_config.block_config.attn_lscale_init", 1e-5),
        ("text_config.block_config.attn_config.clip_qkv", 8.0),
        ("text_config.block_config.attn_config.sliding_window", 4096),
        ("text_config.block_config.attn_config.q_lnorm", False),
        ("text_config.block_config.attn_config.qkv_lnorm_on_heads", False),
        ("text_config.block_config.attn_config.v_lnorm", True),
        ("text_config.block_config.attn_config.q_bias", True),
        ("text_config.block_config.attn_config.lnorm_config.type", "default"),
        ("text_config.block_config.ffn_config.gated_activation", False),
        ("text_config.block_config.ffn_config.activation_type", "gelu"),
        ("text_config.block_config.lnorm_config.bias", True),
        ("text_config.block_config.lnorm_config.with_affine", False),
    ],
)
def test_published_values_that_are_not_implemented(field, value):
    published = json.loads(json.dumps(published_config()))  # no setting is shared
    *path, name = field.split(".")
    settings = published
    for step in path:
        settings = settings[step]
    assert name in settings, "the published schema has this field"
    settings[name] = value
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        JinaVLMConfig(**published)
    assert f"`{field}`" in str(error.value)
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vision_feature_layer": [27]}, ["`vision_feature_layer`", "[27]", "0 to 26"]),
        ({"vision_feature_layer": [-28, 0]}, ["`vision_feature_layer`", "0 to 26"]),
        ({"vision_feature_layer": []}, ["`vision_feature_layer`", "[]"]),
        ({"pooling_size": 0}, ["`pooling_size`", "0"]),
        ({"pooling_size": 0, "pooled_grid": [13, 14]}, ["`pooling_size`", "0"]),
        ({"pooled_grid": [12, 14]}, ["`pooled_grid`", "[12, 14]", "27"]),
        ({"pooled_grid": [14]}, ["`pooled_grid`", "[14]"]),
        ({"image_token_id": 152064}, ["`image_token_id`", "152064"]),
        ({"image_column_token_id": -1}, ["`image_column_token_id`", "-1"]),
        ({"layout": "mosaic"}, ["layout", "mosaic"]),
        ({"vision_config": {"image_size": 380, "patch_size": 14}}, ["`vision_config.image_size`", "380", "14"]),
        ({"vision_config": {"model_type": "clip_vision_model"}}, ["`vision_config.model_type`", "clip_vision_model"]),
        ({"text_config": {"model_type": "llama"}}, ["`text_config.model_type`", "llama"]),
        ({"connector_head_dim": "wide"}, ["connector_head_dim", "wide"]),
        ({"connector_head_dim": 2**20 + 1}, ["`connector_head_dim`", "from 1 to 1048576", "1048577"]),
        ({"connector_hidden_act": "swish7"}, ["`connector_hidden_act`", "swish7", "activation"]),
        ({"image_token_id": 151936}, ["different ids", "'image_token_id': 151936"]),
        ({"num_labels": None}, ["`num_labels`", "None"]),
        ({"num_labels": 10**9}, ["`num_labels`", "4096"]),
        ({"dtype": "float33"}, ["`dtype`", "float33", "bfloat16"]),
        (
            {"vision_config": {"num_attention_heads": 7, "num_hidden_layers": 25}},
            ["`vision_config.hidden_size` (768)"],
        ),
        ({"vision_config": {"image_size": [378, 378]}}, ["`vision_config.image_size`", "[378, 378]"]),
        ({"text_config": {"num_key_value_heads": 5}}, ["`text_config.num_attention_heads` (32)", "multiple of 5"]),
        ({"text_config": {"head_dim": 127}}, ["head_dim", "127"]),
        ({"text_config": {"num_hidden_layers": 10**9}}, ["`text_config.num_hidden_layers`", "1024"]),
        ({"text_config": {"layer_types": ["full_attention"]}}, ["`text_config` is not valid", "layer_types", "(32)"]),
        (
            {"text_config": {"rope_parameters": {"rope_type": "yarn"}}},
            ["`text_config` is not valid", "factor", "yarn"],
        ),
        (
            {"text_config": {"vocab_size": 151940, "eos_token_id": [1, 10**6]}},
            ["`text_config.eos_token_id`", "1000000"],
        ),
    ],
)
def test_fields_that_do_not_fit(fields, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        JinaVLMConfig(**fields)
    for word in words:
        assert word in str(error.value)


def num_parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def linear(rows: int, cols: int, bias: bool = True) -> int:
    return rows * cols + rows * bias


def vision_block_parameters() -> int:
    return 4 * linear(1152, 1152) + linear(4304, 1152) + linear(1152, 4304) + 4 * 1152


@pytest.fixture
def full_size():
    """A function (configuration) to the model of full size, without memory for its weights."""

    def build(config: JinaVLMConfig):
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)

    return build


def test_sizes_of_the_figure(full_size):
    model = full_size(JinaVLMConfig()).model
    # Blocks 0 to 24 of 27, and neither the final norm nor a pooling head.
    assert len(model.vision_tower.encoder.layers) == 25
    embeddings = linear(1152, 588) + 729 * 1152
    assert num_parameters(model.vision_tower) == embeddings + 25 * vision_block_parameters()
    # About 400M with all 27 blocks.
    assert round((embeddings + 27 * vision_block_parameters()) / 1e8) == 4
    pooling = 3 * linear(1152, 2304) + linear(1152, 1152)
    projector = 2 * linear(6144, 1152, bias=False) + linear(2048, 6144, bias=False)
    assert num_parameters(model.connector) == pooling + projector
    assert round((pooling + projector) / 1e6, 1) == 36.0
    attention_weights = (2 * 2048 + 2 * 1024) * 2048 + 2 * 128
    decoder_block = attention_weights + 3 * 6144 * 2048 + 2 * 2048
    assert num_parameters(model.language_model) == 152064 * 2048 + 28 * decoder_block + 2048


def test_size_of_the_published_checkpoint(full_size):
    model = full_size(JinaVLMConfig(**published_config()))
    # The published folder also has two blocks and the final norm, which are unused, a row of `pad_embed`, and the
    # decoder's attention biases, all zero. It lacks the output head's rows of the 128 additional tokens.
    extra = 2 * vision_block_parameters() + 2 * 1152 + 2 * 1152 + 28 * (2048 + 2 * 1024)
    assert num_parameters(model) + extra - 128 * 2048 == 2_481_141_616
