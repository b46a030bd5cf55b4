# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""README.md of a porting kit: its files, the stages and the protocol."""

# ruff: noqa: E501 - rows of tables cannot be broken

_TEXT = """# Porting kit of JinaVLM

Checkpoints, prompts, images and expected values to check a port of the model to another framework. The checkpoints are
small, but have the real geometry: tiles of 378 pixels, 27×27 patches, the markers and the order of tokens. Their weights
are random; the published weights (CC BY-NC 4.0) are not in here. The code is licensed Apache-2.0.

```bash
pip install numpy safetensors
python check_port.py . -- my-port --its-arguments
```

`check_port.py` starts your program, sends it requests, compares its answers and prints a table, the first stage that
differs and the likely cause. Exit status: 0 equal, 1 different, 2 the port cannot be checked. `--case NAME`,
`--checkpoint NAME` and `--stage NAME` choose, `--tolerance 0.05` is for bfloat16.

## Files

| path | content |
|---|---|
| `index.json` | every case with its messages, images and expected values; tolerances; the checkpoints with their token ids |
| `check_port.py` | the runner; needs numpy and safetensors |
| `images/` | the images of the cases |
| `golden/MODEL/CASE.safetensors` | the expected values, one tensor per stage |
| `checkpoints/` | the checkpoints below |

| checkpoint | folder | format | layout | expected values |
|---|---|---|---|---|
{checkpoints}

`published` is the format of `jinaai/jina-vlm`, the other ones are in the format of Transformers. `published` and
`stitched` have the same weights. Large stages are stored as samples: `start` and `step` in the index are the first index
and the step along each axis. A tensor `STAGE: TEXT` holds the values that a known fault leads to, and TEXT names it.

## Cases

| case | what it tests |
|---|---|
{cases}

## Stages

In the order of the computation. `tiles` counts all tiles of all images, each image's thumbnail first. A port may offer
some of them; the others are skipped.

| stage | shape | value |
|---|---|---|
| `prompt` | string | the rendered chat template, with `<\\|image\\|>` for each image |
| `pixels` | `[tiles, 3, height, width]` | red, green, blue from -1 to 1 |
| `positions` | `[tiles, cells]` | index of each pooled cell among the cells of its image in the prompt; -1 if it is dropped |
| `input_ids` | `[tokens]` | the prompt with expanded images, and BOS if the checkpoint has one |
| `features` | `[tiles, patches, features]` | what the connector gets: the chosen vision blocks, concatenated |
| `connector` | `[image tokens, hidden]` | what the connector returns, in the order of the sequence |
| `embeddings` | `[tokens, hidden]` | the inputs of the language model |
| `logits` | `[vocabulary]` | of the first token of the answer; rows beyond the stored ones are ignored |
| `tokens` | `[at most {max_new_tokens}]` | greedy tokens, without those of images; up to the first near tie |

Images are decoded with their EXIF orientation applied and their alpha channel dropped. Everything is computed in
float32.

## Protocol

The runner writes one JSON object a line to the standard input of the port. The port answers each with one JSON object in
one line on its standard output, with the same `id`, and flushes it. Standard error is free for messages. The port ends
when its standard input does.

The first request is `{{"id": "hello", "type": "hello", "protocol": {protocol}}}`. Answer:

```json
{{"id": "hello", "protocol": {protocol}, "name": "my port", "stages": ["prompt", "input_ids"], "given": [], "checkpoints": ["published"]}}
```

`stages` are the ones that the port offers, `checkpoints` the ones that it reads (default: all), `given` those whose
expected values it can use in place of its own (default: none). Then comes one request for each case:

```json
{{
  "id": "published/one_tile",
  "type": "case",
  "checkpoint": "/kit/checkpoints/published",
  "images": ["/kit/images/one_tile.png"],
  "messages": [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "What is in this image?"}}]}}],
  "stages": ["prompt", "input_ids"],
  "max_new_tokens": {max_new_tokens},
  "given": {{}},
  "output_folder": "/tmp/check_port-1"
}}
```

The images belong to the parts of type `image`, in order. `stages` are those to compute. `given` maps stages to values
that replace the port's own, so that a fault does not hide those of later stages. `output_folder` is for files; it is
deleted after the answer. Answer:

```json
{{"id": "published/one_tile", "stages": {{"prompt": " User: …", "input_ids": [422, 512, 514]}}}}
```

A value is one of

- nested lists of numbers,
- `{{"dtype": "float32", "shape": [2, 3], "base64": "…"}}`: little-endian bytes, last axis fastest; other dtypes are
  {dtypes}. Values in `given` have this form,
- `{{"file": "pixels.npy"}}`: a file of NumPy in `output_folder` (or an absolute path), or a `.safetensors` file with a
  tensor of the stage's name.

`prompt` is a string. A leading axis for a batch of one is accepted. If a case fails, answer
`{{"id": "…", "error": "what happened", "stages": {{…}}}}` with the stages before it, if there are any.

A reference in Python is `jvlm/conversion_scripts/reference_port.py` of the package `jvlm`:
`python check_port.py . -- python -m jvlm.conversion_scripts.reference_port`.
"""


def kit_readme(index: dict, dtypes: tuple[str, ...]) -> str:
    """The text for a kit with this index."""
    fields = ("folder", "format", "layout", "golden")
    checkpoints = [
        " | ".join([name, *(str(entry[field]) for field in fields)]) for name, entry in index["checkpoints"].items()
    ]
    cases = [f"{case['name']} | {case['description']}" for case in index["cases"]]
    return _TEXT.format(
        checkpoints="\n".join(f"| {row} |" for row in checkpoints),
        cases="\n".join(f"| {row} |" for row in cases),
        dtypes=", ".join(f"`{dtype}`" for dtype in dtypes if dtype != "float32"),
        protocol=index["protocol"],
        max_new_tokens=index["max_new_tokens"],
    )
