# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Trains the small JinaVLM that ships in `examples/digits/model`, from scratch, with `transformers.Trainer`:

    python -m examples.digits.train --output_dir OUT --max_steps 9000 --vision_steps 6000

As with a real one, the vision tower is trained first, to see digits on tiles; then all of it learns to read pages.
"""

import dataclasses
import sys
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SiglipVisionConfig,
    SiglipVisionModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from jvlm import (
    JinaVLMConfig,
    JinaVLMForConditionalGeneration,
    JinaVLMImageProcessor,
    JinaVLMProcessor,
    add_image_tokens,
)

from .pages import PAPER, PATCH_SIZE, QUESTIONS, TILE_SIZE, DigitPages, DigitTiles


END_OF_TEXT = "<|endoftext|>"


@dataclass
class PageArguments:
    growth: float = field(default=0.5, metadata={"help": "Share of the training in which pages grow to full size."})
    vision_steps: int = field(default=6000, metadata={"help": "Steps of the vision tower's own training before that."})
    vision_tower: str | None = field(default=None, metadata={"help": "Folder of a tower trained already."})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the questions and answers, with the special tokens of Qwen3 and of the images."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    prompts = [f" User: {question} Assistant:" for question in QUESTIONS]
    # A digit must stay one token: no merges across spaces, and every " 7" often enough to be merged.
    corpus = prompts * 20 + [" 0 1 2 3 4 5 6 7 8 9"] * 50
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=[END_OF_TEXT, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, padding_side="left"
    )
    tokenizer.model_max_length = 1024
    add_image_tokens(tokenizer)
    return tokenizer


def build_processor() -> JinaVLMProcessor:
    """Tiles of 56 pixels, 7×7 patches of 8 pixels, neighbours overlapping by two patches."""
    image_processor = JinaVLMImageProcessor(
        size={"height": TILE_SIZE, "width": TILE_SIZE}, patch_size=PATCH_SIZE, overlap_margins=[1, 1]
    )
    return JinaVLMProcessor(image_processor, build_tokenizer())


VISION_CONFIG = SiglipVisionConfig(
    hidden_size=96,
    intermediate_size=288,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=TILE_SIZE,
    patch_size=PATCH_SIZE,
    vision_use_head=False,
)


class PatchReader(nn.Module):
    """A SigLIP vision tower with a linear layer that tells the digit at every patch."""

    def __init__(self):
        super().__init__()
        self.vision_tower = SiglipVisionModel(VISION_CONFIG)
        self.classifier = nn.Linear(VISION_CONFIG.hidden_size, PAPER + 1)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.classifier(self.vision_tower(pixel_values).last_hidden_state)  # [tiles, patches, classes]
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def build_model(processor: JinaVLMProcessor) -> JinaVLMForConditionalGeneration:
    """About 1.5M parameters: four vision blocks of which two feed the connector, four decoder blocks."""
    tokenizer = processor.tokenizer
    text_config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=0.06,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    marker = tokenizer.convert_tokens_to_ids
    config = JinaVLMConfig(
        vision_config=VISION_CONFIG.to_dict(),
        text_config=text_config,
        vision_feature_layer=[3, 1],
        connector_num_attention_heads=4,
        connector_head_dim=32,
        connector_intermediate_size=256,
        image_token_id=processor.image_token_id,
        image_start_token_id=marker("<im_start>"),
        image_end_token_id=marker("<im_end>"),
        image_column_token_id=marker("<im_col>"),
    )
    return JinaVLMForConditionalGeneration(config)


class Collator:
    """Batches rows: labels on the assistant's words and end marks alone."""

    def __init__(self, processor: JinaVLMProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        conversations = []
        for row in rows:
            pictures = iter(row["images"])
            conversations.append(
                [
                    {**message, "content": [self.fill(part, pictures) for part in message["content"]]}
                    for message in row["messages"]
                ]
            )
        batch = self.processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        assistant = torch.as_tensor(batch.pop("assistant_masks")).bool()
        batch["labels"] = batch["input_ids"].masked_fill(~assistant, -100)
        return dict(batch)

    @staticmethod
    def fill(part: dict, pictures) -> dict:
        """A part of a message with its picture, if it is the place of one."""
        return {**part, "image": next(pictures)} if part["type"] == "image" else part


def train_vision_tower(args: TrainingArguments, steps: int) -> str:
    """Trains the vision tower on tiles and returns the folder it is saved in."""
    folder = f"{args.output_dir}/vision_tower"
    args = dataclasses.replace(
        args, output_dir=folder, max_steps=steps, per_device_train_batch_size=96, resume_from_checkpoint=None
    )
    model = PatchReader()
    Trainer(model=model, args=args, train_dataset=DigitTiles(steps * 96, args.seed)).train()
    model.vision_tower.save_pretrained(folder)
    return folder


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser((TrainingArguments, PageArguments))
    defaults = {
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 200,
        "weight_decay": 0.05,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 32,
        "logging_steps": 50,
        "save_steps": 500,
        "save_total_limit": 2,
        "dataloader_num_workers": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "report_to": "none",
    }
    parser.set_defaults(**defaults)
    args, page_args = parser.parse_args_into_dataclasses(args=argv)
    set_seed(args.seed)
    processor = build_processor()
    model = build_model(processor)
    print(f"{model.num_parameters():,} parameters")
    folder = page_args.vision_tower or train_vision_tower(args, page_args.vision_steps)
    trained = SiglipVisionModel.from_pretrained(folder).state_dict()
    missing = model.model.vision_tower.load_state_dict(trained, strict=False).missing_keys
    if missing:  # the final norm, which the trained tower has too many, is not used
        raise ValueError(f"{folder} lacks weights of the vision tower: {', '.join(missing)}.")
    batch_size = args.per_device_train_batch_size
    pages = DigitPages(args.max_steps * batch_size, batch_size, page_args.growth, seed=args.seed)
    trainer = Trainer(
        model=model, args=args, train_dataset=pages, data_collator=Collator(processor), processing_class=processor
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main(sys.argv[1:])
