# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Answers a question about images with a folder of ONNX graphs. It needs onnxruntime, tokenizers, numpy and pillow, but
neither PyTorch nor Transformers:

    python answer.py photo.jpg "What is in this image?"
    python answer.py left.jpg right.jpg "What is different?" --max-new-tokens 128

From Python:

    answerer = Answerer("folder")
    print("".join(answerer.answer(["photo.jpg"], "What is in this image?")))
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL.Image
import PIL.ImageOps
from tokenizers import Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from ..processing.tiling import TileGeometry
from .digests import digest


class Answerer:
    """
    A model in a folder of ONNX graphs. Answers are greedy.

    Args:
        folder (`str` or `Path`): the folder.
        num_threads (`int`, *optional*): number of threads, by default ONNX Runtime's choice.

    Raises:
        OSError: if a file is missing.
        ValueError: if a graph or its weights are damaged, or ONNX Runtime cannot load them.
    """

    def __init__(self, folder: str | Path, num_threads: int | None = None):
        folder = Path(folder)
        manifest = _read(folder / "runtime.json")
        self.graphs = _sessions(folder, manifest, num_threads)
        self.dtype = np.dtype(manifest["dtype"])
        self.image_token_id = _read(folder / "config.json")["image_token_id"]
        self.settings = _read(folder / "processor_config.json")["image_processor"]
        self.prompt = _read(folder / "answer.json")
        geometry: dict[str, Any] = self.prompt["geometry"]
        for name in ("overlap_margins", "pooled_grid"):
            geometry[name] = tuple(geometry[name])
        self.geometry = TileGeometry(**geometry)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        generation = _read(folder / "generation_config.json")
        stops = generation["eos_token_id"]
        self.stops = set(stops if isinstance(stops, list) else [stops])
        self.suppressed = generation.get("suppress_tokens") or []

    def answer(self, images: Sequence, question: str, max_new_tokens: int = 64) -> Iterator[str]:
        """The pieces of the answer to a question about images: files or PIL images."""
        tiles = [self.pixels(image) for image in images]
        token_ids = self.token_ids([grid for _, grid in tiles], question)
        features = [self.image_features(*image) for image in tiles]
        embeddings = self._run("embedding", np.array([token_ids]))[0]
        if features:
            # A feature is added to the embedding of its image token.
            embeddings[0, np.equal(token_ids, self.image_token_id)] += np.concatenate(features)
        answer: list[int] = []
        text = ""
        for token_id in self._decode(embeddings, max_new_tokens):
            answer.append(token_id)
            now = self.tokenizer.decode(answer)
            if not now.endswith("\N{REPLACEMENT CHARACTER}"):  # a character of several tokens is not complete
                yield now[len(text) :]
                text = now

    def pixels(self, image: str | Path | PIL.Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """The thumbnail and the tiles of an image, `[tiles, 3, size, size]`, and the rows and columns of tiles."""
        if not isinstance(image, PIL.Image.Image):
            with PIL.Image.open(image) as opened:
                image = PIL.ImageOps.exif_transpose(opened)
        pixels: np.ndarray = np.array(_to_rgb(image)).transpose(2, 0, 1)
        settings, geometry = self.settings, self.geometry
        height, width = pixels.shape[1:]
        if max(height, width) > settings["max_aspect_ratio"] * min(height, width):
            raise ValueError(f"an image of {width}×{height} pixels is too narrow; crop or pad it.")
        factor = np.float32(1 / settings["rescale_factor"])
        if settings["do_resize"]:
            limits = settings["min_pixels"], settings["max_pixels"]
            pixels = _resize(pixels, smart_resize(height, width, settings["patch_size"], *limits)).round()
        height, width = pixels.shape[1:]
        grid = geometry.select_grid(height, width, settings["max_crops"])
        if settings["do_resize"]:
            pixels = pixels / factor
        mean, std = (np.array(settings[name], np.float32) for name in ("image_mean", "image_std"))
        tiles, size = [], geometry.tile_size
        for frame in ((1, 1), grid):  # the thumbnail is a grid of one tile
            canvas = _resize(pixels, geometry.canvas_size(frame))
            canvas = canvas if settings["do_resize"] else canvas.round() / factor
            canvas = _multiply_add(canvas, (1 / std)[:, None, None], (-mean / std)[:, None, None])
            tiles += [canvas[:, top : top + size, left : left + size] for top, left in geometry.windows(frame)]
        return np.stack(tiles), grid

    def token_ids(self, grids: Sequence[tuple[int, int]], question: str) -> list[int]:
        """The prompt of a question about images with these grids of tiles."""
        for token in ("<|image|>", "<im_start>", "<im_end>", "<im_patch>", "<im_col>"):
            if token in question:
                raise ValueError(f"The question contains {token!r}, which is reserved.")
        images = "".join(self._image_tokens(grid) for grid in grids)
        text = self.prompt["before"] + images + self.prompt["between"] + question + self.prompt["after"]
        return self.tokenizer.encode(text, add_special_tokens=self.prompt["add_special_tokens"]).ids

    def image_features(self, pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """The features of an image's tokens, `[tokens, hidden_size]`."""
        # The tile of a 1×1 grid has the pixels of its thumbnail, so the pair is encoded once.
        is_single = len(pixels) == 2
        (features,) = self._run("vision", pixels[:1] if is_single else pixels)
        positions = self.geometry.token_positions(grid)
        tile, cell = (positions >= 0).nonzero()
        order = positions[tile, cell].argsort()
        indices = (0 if is_single else tile * positions.shape[1]) + cell
        return self._run("connector", features, indices[order], (tile == len(pixels) - 1)[order])[0]

    def _image_tokens(self, grid: tuple[int, int]) -> str:
        if self.geometry.layout == "independent":
            return "<im_patch>" * self.geometry.num_tokens(grid)[0]
        return "".join(
            "<im_start>" + ("<im_patch>" * cols + "<im_col>") * rows + "<im_end>"
            for rows, cols in (self.geometry.pooled_grid, self.geometry.stitched_grid(grid))
        )

    def _decode(self, embeddings: np.ndarray, max_new_tokens: int) -> Iterator[int]:
        decoder = self.graphs["decoder"]
        cache = [
            np.zeros((1, node.shape[1], 0, node.shape[3]), self.dtype) for node in decoder.get_inputs()[3:]
        ]  # keys and values of all layers, [1, heads, tokens, head_dim]
        num_tokens = 0
        for _ in range(max_new_tokens):
            positions = np.arange(num_tokens, num_tokens + embeddings.shape[1])[None]
            num_tokens += embeddings.shape[1]
            mask = np.ones((1, num_tokens), np.int64)
            hidden_states, *cache = self._run("decoder", embeddings, mask, positions, *cache)
            logits = self._run("head", hidden_states[:, -1:])[0][0, -1]
            logits[logits == 0] = -np.inf  # rows of the head that no token has
            logits[self.suppressed] = -np.inf
            token_id = int(logits.argmax())
            if token_id in self.stops:
                return
            yield token_id
            (embeddings,) = self._run("embedding", np.array([[token_id]]))

    def _run(self, graph: str, *inputs: np.ndarray) -> list[np.ndarray]:
        session = self.graphs[graph]
        arrays = {
            node.name: value.astype(self.dtype, copy=False) if value.dtype.kind == "f" else value
            for node, value in zip(session.get_inputs(), inputs, strict=True)
        }
        return session.run(None, arrays)


def _sessions(folder: Path, manifest: dict, num_threads: int | None) -> dict[str, Any]:
    """The graphs of the folder, loaded."""
    for name, value in manifest["files"].items():
        if ".onnx" in name and digest(folder / name) != value:
            raise ValueError(f"{folder / name} is damaged or of another export. Copy the whole folder again.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    sessions = {}
    for name, file in manifest["graphs"].items():
        try:
            sessions[name] = onnxruntime.InferenceSession(folder / file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes have no public name
            raise ValueError(
                f"{folder / file} cannot be loaded by onnxruntime {onnxruntime.__version__}: "
                f"{str(error).splitlines()[0]} Use a version that is at least the one in runtime.json."
            ) from error
    return sessions


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An image in the mode RGB. An alpha channel is dropped."""
    if image.mode.startswith("I;16"):
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"an image of the mode {image.mode} cannot be read; save it with 8 bits per channel.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """`a · b + c` in float32, rounded once, as the fused multiply-add of the processors that PyTorch uses."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _samples(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels before and after each sample position along an axis, and the weight of the latter."""
    scale = float(np.float32(size) / np.float32(new_size))
    positions = (scale * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32).clip(min=0)
    before = np.minimum(positions.astype(np.int64), size - 1)
    return before, np.minimum(before + 1, size - 1), positions - before.astype(np.float32)


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of `[3, height, width]` to float32, bitwise equal to `torch.nn.functional.interpolate`."""
    if image.shape[1:] == size:
        return image.astype(np.float32)
    (top, bottom, below), (left, right, after) = map(_samples, image.shape[1:], size)
    below = below[:, None]
    above, before = 1 - below, 1 - after
    resized = np.empty((3, *size), np.float32)
    for channel, output in zip(image, resized, strict=True):
        corners = [channel[rows][:, cols].astype(np.float32) for rows in (top, bottom) for cols in (left, right)]
        if sum(size) <= 128:  # PyTorch then multiplies the weights first
            weights = above * before, above * after, below * before, below * after
            values = _multiply_add(weights[0], corners[0], weights[1] * corners[1])
            values = _multiply_add(weights[2], corners[2], values)
            output[:] = _multiply_add(weights[3], corners[3], values)
        else:
            upper = _multiply_add(corners[0], before, corners[1] * after)
            lower = _multiply_add(corners[2], before, corners[3] * after)
            output[:] = _multiply_add(upper, above, lower * below)
    return resized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="path of an image")
    parser.add_argument("question", help="what to ask about the images")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="maximum length of the answer")
    args = parser.parse_args()
    if not args.images and Path(args.question).is_file():
        parser.error(f"{args.question} is a file; ask a question about it.")
    is_first = True
    try:
        for piece in Answerer(Path(__file__).parent).answer(args.images, args.question, args.max_new_tokens):
            print(piece.lstrip() if is_first else piece, end="", flush=True)
            is_first = False
    except (OSError, ValueError) as error:  # an image that cannot be read, or a question that cannot be asked
        parser.exit(1, f"{parser.prog}: error: {error}\n")
    print()


if __name__ == "__main__":
    main()
