# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Transformers' common tests of models and configurations, on tiny models of both layouts."""

import unittest
from importlib.util import find_spec
from unittest.mock import patch

import torch
import upstream
from tests import test_modeling_common as common
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_training_mixin import TrainingTesterMixin
from transformers import PreTrainedModel

from jvlm import JinaVLMConfig, JinaVLMForConditionalGeneration, JinaVLMModel, JinaVLMPreTrainedModel
from jvlm.processing.tiling import TileGeometry


# The common tests look a class up by its name among Transformers' own; ours stands beside them.
common.MODEL_MAPPING_NAMES = {**common.MODEL_MAPPING_NAMES, "jvlm": "JinaVLMModel"}


class JinaVLMModelTester:
    """A tiny model and a batch of prompts with one image of 1 × 2 tiles each."""

    layout = "independent"
    use_last_tile_embedding = False
    num_start_tokens = 0
    is_training = True
    batch_size = 3
    num_text_tokens = 7
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    grid = (1, 2)
    causal_lm_class = JinaVLMForConditionalGeneration
    base_model_class = JinaVLMModel

    def __init__(self, parent):
        self.parent = parent
        self.vision_config = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 20,
            "patch_size": 4,
        }
        self.text_config = {
            "vocab_size": 99 + 128,  # as published: words, then image tokens and what pads them
            "hidden_size": self.hidden_size,
            "intermediate_size": 37,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }
        geometry = TileGeometry(20, 4, (1, 1), 2, tuple(self.get_config().pooled_grid), self.layout)
        self.image_token_positions = torch.from_numpy(geometry.token_positions(self.grid).copy())
        self.num_image_tokens = int((self.image_token_positions >= 0).sum())
        self.seq_length = self.num_text_tokens + self.num_start_tokens + self.num_image_tokens
        self.encoder_seq_length = self.seq_length

    def get_config(self) -> JinaVLMConfig:
        return JinaVLMConfig(
            vision_config=self.vision_config,
            text_config=self.text_config,
            layout=self.layout,
            use_last_tile_embedding=self.use_last_tile_embedding,
            vocab_size=self.text_config["vocab_size"],  # some tests read it from the whole configuration
            vision_feature_layer=[1, 0],
            connector_num_attention_heads=2,
            connector_head_dim=8,
            connector_intermediate_size=24,
            image_token_id=101,
            image_start_token_id=99,
            image_end_token_id=100,
            image_column_token_id=102,
        )

    def prepare_config_and_inputs_for_common(self):
        text = torch.randint(3, 99, (self.batch_size, self.num_text_tokens))
        image = torch.tensor([99] * self.num_start_tokens + [101] * self.num_image_tokens).repeat(self.batch_size, 1)
        input_ids = torch.cat([text[:, :2], image, text[:, 2:]], dim=1)
        num_tiles = self.batch_size * len(self.image_token_positions)
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": torch.rand(num_tiles, 3, 20, 20) * 2 - 1,
            "image_token_positions": self.image_token_positions.repeat(self.batch_size, 1),
        }


class JinaVLMModelTest(common.ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (JinaVLMModel, JinaVLMForConditionalGeneration)
    _is_composite = True
    model_tester = None
    model_tester_class = JinaVLMModelTester
    # Features of several blocks are concatenated, so they are wider than the vision tower.
    skip_test_image_features_output_shape = True

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(self, config_class=JinaVLMConfig, has_text_modality=False)

    @upstream.overrides("it cuts the vocabulary to 20 tokens, below the image tokens, which is an error")
    def test_config(self):
        cut_vocabulary = self.config_tester.create_and_test_config_from_pretrained_custom_kwargs
        with self.assertRaisesRegex(Exception, "outside the 20 tokens of `text_config.vocab_size`"):
            cut_vocabulary()
        with patch.object(self.config_tester, cut_vocabulary.__name__):
            self.config_tester.run_common_tests()

    # The source distribution lacks Transformers' own test of its exporters.
    @unittest.skipIf(find_spec("transformers.exporters") is None, "Transformers has no exporters.")
    def test_dynamo_exporter(self):
        from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = JinaVLMForConditionalGeneration(config).eval()
        exported = DynamoExporter().export(model, inputs, config=DynamoConfig(dynamic=True))
        with patch.object(self.model_tester_class, "grid", (2, 2)):
            others = self.model_tester_class(self).prepare_config_and_inputs_for_common()[1]
        self.assertNotEqual(len(inputs["pixel_values"]), len(others["pixel_values"]))
        for each in (inputs, others):
            with torch.no_grad():
                torch.testing.assert_close(exported(**each).logits, model(**each).logits, rtol=0, atol=1e-5)

    @upstream.overrides("save_pretrained writes Transformers' weight names unless told; pad_embed is an option")
    def test_reverse_loading_mapping(self):
        with (
            patch.object(JinaVLMPreTrainedModel, "save_pretrained", PreTrainedModel.save_pretrained),
            patch.object(self.model_tester, "use_last_tile_embedding", True),
        ):
            super().test_reverse_loading_mapping()


class JinaVLMStitchedModelTester(JinaVLMModelTester):
    layout = "stitched"
    use_last_tile_embedding = True
    num_start_tokens = 2


class JinaVLMStitchedModelTest(JinaVLMModelTest):
    model_tester_class = JinaVLMStitchedModelTester
