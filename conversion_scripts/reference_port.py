# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
The protocol of `check_port` on top of this package: the example that ports to other frameworks follow. `porting_kit`
takes the expected values from it.

    python -m jvlm.conversion_scripts.check_port porting_kit -- python -m jvlm.conversion_scripts.reference_port
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..modeling.image_plan import plan_images
from ..processing.image_loading import load_image
from .check_port import GIVEN, PROTOCOL, STAGES, decode_array, encode_array
from .checkpoint_folder import load_config, load_model, load_processor, local_folder


# Larger arrays go to files.
MAX_BYTES_IN_ANSWER = 1_000_000


class ReferencePort:
    """
    Computes the stages of a case with this package, in float32.

    Args:
        checkpoint (`str` or `Path`): a checkpoint in either format, folder or Hub id.
    """

    def __init__(self, checkpoint: str | Path):
        folder = local_folder(checkpoint)
        self.processor = load_processor(folder, load_config(folder), is_export=True)
        self.model = load_model(folder, "float32").eval()
        self.config = self.model.config

    @torch.inference_mode()
    def compute(self, request: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """
        The stages that a request names: the prompt as a string, the others as arrays. Those of images are left out
        where there are none. Each stage comes from the one before, or from `given` if it is there.
        """
        last = max(STAGES.index(stage) for stage in request["stages"])
        values: dict[str, Any] = {}
        for stage in STAGES[: last + 1]:
            given = request["given"].get(stage)
            if stage == "prompt":
                values[stage] = self.prompt(request["messages"]) if given is None else given
            elif given is None:
                values[stage] = getattr(self, stage)(values, request)
            else:
                values[stage] = torch.from_numpy(decode_array(stage, given, Path()).copy())
            if stage in request["stages"] and values[stage] is not None:
                yield stage, values[stage] if stage == "prompt" else values[stage].numpy()

    def prompt(self, messages: list[dict]) -> str:
        return self.processor.apply_chat_template(messages, add_generation_prompt=True)

    def pixels(self, values: dict, request: Mapping[str, Any]) -> torch.Tensor | None:
        """Thumbnail and tiles of all images, `[tiles, 3, height, width]`. Also prepares the next two stages."""
        images = [load_image(path) for path in request["images"]]
        values["inputs"] = self.processor(text=values["prompt"], images=images or None, return_tensors="pt")
        return values["inputs"].get("pixel_values")

    def positions(self, values: dict, request: Mapping[str, Any]) -> torch.Tensor | None:
        if "inputs" not in values:
            self.pixels(values, request)
        return values["inputs"].get("image_token_positions")

    def input_ids(self, values: dict, request: Mapping[str, Any]) -> torch.Tensor:
        if "inputs" not in values:
            self.pixels(values, request)
        return values["inputs"]["input_ids"][0]

    def features(self, values: dict, request: Mapping[str, Any]) -> torch.Tensor | None:
        """What the connector pools, `[tiles, patches, feature_size]`."""
        if values["pixels"] is None:
            return None
        return self.model.model.get_vision_features(values["pixels"]).last_hidden_state

    def connector(self, values: dict, request: Mapping[str, Any]) -> torch.Tensor | None:
        """A vector per image token in the order of the sequence, `[image tokens, hidden_size]`."""
        if values["features"] is None:
            return None
        plan = plan_images(values["positions"])
        return self.model.model.connector(values["features"][plan.tile_indices], plan.cell_indices, plan.is_last_tile)

    def embeddings(self, values: dict, request: Mapping[str, Any]) -> torch.Tensor:
        """The inputs of the language model, `[tokens, hidden_size]`."""
        embeddings = self.model.get_input_embeddings()(values["input_ids"]).clone()
        if values["connector"] is not None:
            # The vector is added to the embedding of <im_patch>.
            embeddings[values["input_ids"] == self.config.image_token_id] += values["connector"]
        return embeddings

    def logits(self, values: dict, request: Mapping[str, Any]) -> torch.Tensor:
        """Logits of the first token of the answer, `[vocabulary]`."""
        return self.model(inputs_embeds=values["embeddings"][None], logits_to_keep=1).logits[0, 0]

    def tokens(self, values: dict, request: Mapping[str, Any]) -> torch.Tensor:
        """Greedy tokens of the answer."""
        output = self.generate(values["embeddings"], request["max_new_tokens"])
        return output.sequences[0]

    def generate(self, embeddings: torch.Tensor, max_new_tokens: int) -> Any:
        return self.model.generate(
            inputs_embeds=embeddings[None],
            attention_mask=torch.ones(1, len(embeddings), dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )


@lru_cache(maxsize=1)
def load_port(checkpoint: str) -> ReferencePort:
    """The port of a checkpoint. The last one stays loaded."""
    return ReferencePort(checkpoint)


def encode(stage: str, value: str | np.ndarray, folder: str) -> Any:
    """A stage for the answer. Large arrays are saved in the folder that the request names."""
    if isinstance(value, str):
        return value
    if value.nbytes <= MAX_BYTES_IN_ANSWER:
        return encode_array(value)
    np.save(Path(folder) / f"{stage}.npy", value)
    return {"file": f"{stage}.npy"}


def answer(request: Mapping[str, Any], load: Callable[[str], ReferencePort] = load_port) -> dict[str, Any]:
    """The answer to a request. If the case fails, it has the stages before the error, and the next case can follow."""
    if request["type"] == "hello":
        return {"id": request["id"], "protocol": PROTOCOL, "name": "jvlm", "stages": STAGES, "given": GIVEN}
    stages: dict[str, Any] = {}
    try:
        for stage, value in load(request["checkpoint"]).compute(request):
            stages[stage] = encode(stage, value, request["output_folder"])
    except Exception as error:
        return {"id": request["id"], "stages": stages, "error": f"{type(error).__name__}: {error}"}
    return {"id": request["id"], "stages": stages}


def main() -> None:
    # Libraries print to standard output too; only answers may go there.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
