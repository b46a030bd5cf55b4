# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning of a checkpoint in the published format, as it is and after conversion."""

import pytest
import torch
from helpers import losses
from transformers import AutoModelForImageTextToText, AutoProcessor

from jvlm.conversion_scripts.convert_release import convert_release
from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainer


@pytest.fixture(scope="module", params=["published", "converted"])
def checkpoint(request, release, tmp_path_factory):
    """The folder of the published checkpoint, or of the converted one."""
    if request.param == "published":
        return release / "checkpoint"
    return convert_release(release / "checkpoint", tmp_path_factory.mktemp("converted") / "checkpoint")


def test_fine_tuning_changes_all_modules_and_lowers_the_loss(checkpoint, build_row, training_arguments):
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="float32")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = JinaVLMTrainer(
        model=model,
        args=training_arguments(learning_rate=1e-3, max_steps=8),
        train_dataset=[build_row(number) for number in range(2)],
        data_collator=DataCollatorForJinaVLM(processor),
        processing_class=processor,
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.9 * losses(trainer)[0]
    # The gradient of the biases of keys is zero: softmax ignores them.
    unchanged = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert all(name.endswith("k_proj.bias") for name in unchanged)


def test_labels_are_the_answers_and_the_end_of_each(checkpoint, build_row):
    """The published template writes no end-of-sequence token after an answer; the collator does."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    row = build_row(num_images=2, num_turns=2)
    batch = DataCollatorForJinaVLM(processor)([row])
    labels = batch["labels"][0]
    answers = [message["content"][0]["text"] for message in row["messages"] if message["role"] == "assistant"]
    eos = processor.tokenizer.eos_token
    assert processor.tokenizer.decode(labels[labels != -100]) == "".join(f" {answer}{eos}" for answer in answers)
    assert (batch["input_ids"][batch["labels"] != -100] == labels[labels != -100]).all()
