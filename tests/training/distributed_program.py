# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
The program that `test_distributed.py` launches in several processes:

    accelerate launch ... distributed_program.py FOLDER STRATEGY [ARGUMENT...]

It trains with all settings of RUNS[STRATEGY], and calls jvlm.training.finetune if there are arguments for it. FOLDER
contains `model` and `rows.pt`, rows by name. Every process writes its results to FOLDER/STRATEGY/RUN/RANK.json.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate.state import DistributedType, PartialState
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from jvlm.training import DataCollatorForJinaVLM, JinaVLMTrainer, JinaVLMTrainingArguments


ROWS_PER_STEP = 4
# Transformers 5.23 renamed the argument.
CHECKPOINTING = "activation_checkpointing"
CHECKPOINTING = CHECKPOINTING if hasattr(JinaVLMTrainingArguments, CHECKPOINTING) else "gradient_checkpointing"
STREAM_STEPS = 6  # more than the stream has rows for
# Rows and training arguments of every run. Trainer lets DDP search for unused weights, unless gradient checkpointing
# is on. "mixed" and "text" disable the search, so that training fails if a process does not use a weight.
BOTH = {"mixed": ("mixed", {}), "text": ("text", {})}
# Rows in one sequence, and the features of a frozen tower from a folder.
PACKED_AND_KEPT = {"packing": True, "freeze": ["vision_tower"], "keep_vision_features": "features"}
RUNS = {
    "ddp": {
        "mixed": ("mixed", {"use_cpu": True, "ddp_find_unused_parameters": False}),
        "text": ("text", {"use_cpu": True, "ddp_find_unused_parameters": False}),
        "checkpointing": ("mixed", {"use_cpu": True, CHECKPOINTING: True}),
        "packed": ("mixed", {"use_cpu": True, "ddp_find_unused_parameters": False, **PACKED_AND_KEPT}),
    },
    "fsdp2": {
        **BOTH,
        "packed": ("mixed", PACKED_AND_KEPT),
        "stream": ("stream", {"per_device_train_batch_size": 1}),
    },
    "deepspeed_zero3": {**BOTH, "packed": ("mixed", PACKED_AND_KEPT)},
}


def shard_on_cpu() -> None:
    """Makes Accelerate shard models on CPUs, which it only does on accelerators."""
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def stream(rows: list[dict]):
    """A streaming data set of two files, one per process, with different numbers of rows."""
    from datasets import IterableDataset

    def read(files):
        for file in files:
            yield from file

    return IterableDataset.from_generator(read, gen_kwargs={"files": [rows[:3], rows[3:]]})


def train(folder: Path, rows: str, output: Path, packing=False, **settings) -> tuple[JinaVLMTrainer, dict]:
    """Trains the model in `folder` on `rows` and evaluates it on `evaluation`. Returns the trainer and all losses."""
    if "keep_vision_features" in settings:
        settings["keep_vision_features"] = str(output / settings["keep_vision_features"])
    by_name = torch.load(folder / "rows.pt", weights_only=False)
    is_stream = rows == "stream"
    args = JinaVLMTrainingArguments(
        output_dir=str(output),
        global_batch_size=ROWS_PER_STEP,
        max_steps=STREAM_STEPS if is_stream else len(by_name[rows]) // ROWS_PER_STEP,
        learning_rate=3e-3,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        ddp_timeout=120,
        **settings,
    )
    trainer = JinaVLMTrainer(
        model=AutoModelForImageTextToText.from_pretrained(folder / "model", dtype="float32"),
        args=args,
        train_dataset=stream(by_name["mixed"]) if is_stream else by_name[rows],
        data_collator=DataCollatorForJinaVLM(AutoProcessor.from_pretrained(folder / "model"), packing=packing),
    )
    trainer.train()
    kept = trainer.data_collator.vision_features
    results = {
        "num_kept_tiles": kept and len(kept),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "eval_loss": trainer.evaluate(by_name["evaluation"])["eval_loss"],
        "uneven_eval_loss": trainer.evaluate(by_name["evaluation"][:-1])["eval_loss"],
    }
    return trainer, results


def full_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights of a model, gathered if they are sharded."""
    parameters = dict(model.named_parameters())
    if any(hasattr(parameter, "ds_id") for parameter in parameters.values()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return {
        name.replace("_checkpoint_wrapped_module.", ""): parameter.full_tensor().detach().clone()
        if isinstance(parameter, DTensor)
        else parameter.detach().clone()
        for name, parameter in parameters.items()
    }


def run_all(folder: Path, strategy: str) -> None:
    for name, (rows, settings) in RUNS[strategy].items():
        output = folder / strategy / name
        settings = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 1, **settings}
        trainer, results = train(folder, rows, output, **settings)
        trainer.save_model()
        # The first process has images, the second one has none. The loss is not averaged over processes.
        rank = trainer.args.process_index
        collator = DataCollatorForJinaVLM(trainer.data_collator.processor)
        batch = collator(torch.load(folder / "rows.pt", weights_only=False)["by_process"][rank])
        trainer.model_wrapped.train()
        loss = trainer.model_wrapped(**batch).loss
        results["own_loss"] = loss.item()
        weights = full_weights(trainer.model)
        if trainer.is_world_process_zero():
            save_file(weights, output / "weights.safetensors")
        (output / f"{rank}.json").write_text(json.dumps(results))


def main(argv: list[str]) -> None:
    folder, strategy, *finetune_arguments = argv
    if strategy != "ddp":
        shard_on_cpu()
    run_all(Path(folder), strategy)
    if finetune_arguments:
        from jvlm.training import finetune

        finetune.main(finetune_arguments)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
