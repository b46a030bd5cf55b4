# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
What `test_distributed.py` runs in several processes:

    accelerate launch ... distributed_program.py FOLDER STRATEGY     # the runs of RUNS[STRATEGY]
    accelerate launch ... distributed_program.py ARGUMENT...         # examples.finetune with these arguments

FOLDER holds `model` and `rows.pt`, rows by name. Every process writes what it saw to FOLDER/STRATEGY/RUN/RANK.json.
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
STREAM_STEPS = 6  # more than there are rows for
# Name of the run to its rows and training arguments. DDP finds out by itself which weights a process left out, unless
# the backward pass recomputes the forward pass; all of them must do without.
BOTH = {"mixed": ("mixed", {}), "text": ("text", {})}
RUNS = {
    "ddp": {
        "mixed": ("mixed", {"use_cpu": True, "ddp_find_unused_parameters": False}),
        "text": ("text", {"use_cpu": True, "ddp_find_unused_parameters": False}),
        "checkpointing": ("mixed", {"use_cpu": True, "gradient_checkpointing": True}),
    },
    "fsdp2": {**BOTH, "stream": ("stream", {"per_device_train_batch_size": 1})},
    "deepspeed_zero3": BOTH,
}


def shard_on_cpu() -> None:
    """Accelerate divides models among accelerators only: it shall take this process for one of those."""
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def stream(rows: list[dict]):
    """A streaming data set of two files, one for each process, that end at different steps."""
    from datasets import IterableDataset

    def read(files):
        for file in files:
            yield from file

    return IterableDataset.from_generator(read, gen_kwargs={"files": [rows[:3], rows[3:]]})


def train(folder: Path, rows: str, output: Path, **settings) -> tuple[JinaVLMTrainer, dict]:
    """Trains the model in `folder` on all of its `rows`, and evaluates it on `evaluation`; returns also the losses."""
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
        data_collator=DataCollatorForJinaVLM(AutoProcessor.from_pretrained(folder / "model")),
    )
    trainer.train()
    seen = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "eval_loss": trainer.evaluate(by_name["evaluation"])["eval_loss"],
        "uneven_eval_loss": trainer.evaluate(by_name["evaluation"][:-1])["eval_loss"],
    }
    return trainer, seen


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights, whole, of a model that is divided among processes or not."""
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
        trainer, seen = train(folder, rows, output, **settings)
        trainer.save_model()
        # The first process has images, the second has none; the loss is the process's own, not an average.
        rank = trainer.args.process_index
        batch = trainer.data_collator(torch.load(folder / "rows.pt", weights_only=False)["by_process"][rank])
        trainer.model_wrapped.train()
        loss = trainer.model_wrapped(**batch).loss
        seen["own_loss"] = loss.item()
        weights = whole_weights(trainer.model)
        if trainer.is_world_process_zero():
            save_file(weights, output / "weights.safetensors")
        (output / f"{rank}.json").write_text(json.dumps(seen))


def main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] != "ddp":
        shard_on_cpu()
    if len(argv) == 2:
        run_all(Path(argv[0]), argv[1])
    else:
        from examples import finetune

        finetune.main(argv)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
