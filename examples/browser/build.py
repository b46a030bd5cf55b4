# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Builds a folder with a web page that answers about images in the browser; its server only serves files.

    python -m examples.browser.build --output page
    python -m http.server --directory page      # then open http://localhost:8000

    python -m examples.browser.build --model my-jina-vlm-onnx --output page

It needs `npm` once, to download two packages into `build/npm`.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoProcessor

import jvlm
from jvlm.conversion_scripts.export_runtime import export_runtime
from jvlm.conversion_scripts.output_folder import new_folder
from jvlm.processing.tiling import possible_grids
from jvlm.runtimes.manifest import read_manifest
from jvlm_cli.command_line import argument_parser, run


SHIPPED_MODEL = Path(find_spec("jvlm.shipped_model").submodule_search_locations[0])
PAGE = Path(__file__).parent / "page"
PACKAGES_FOLDER = Path(__file__).parents[2] / "build" / "npm"
# The npm packages: version, the registry's digest of the archive, and the files to copy with their names in the page.
PACKAGES = {
    "onnxruntime-web": (
        "1.30.0",
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        {
            "dist/ort.wasm.bundle.min.mjs": "onnxruntime-web.js",
            "dist/ort-wasm-simd-threaded.wasm": "onnxruntime-web.wasm",
            "package.json": "onnxruntime-web.json",
        },
    ),
    "@huggingface/tokenizers": (
        "0.2.0",
        "sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        {"dist/tokenizers.min.mjs": "tokenizers.js", "LICENSE": "tokenizers.LICENSE"},
    ),
}
_IMAGE_SETTINGS = ("max_aspect_ratio", "rescale_factor", "image_mean", "image_std")


def archive(package: str, version: str) -> str:
    """The name that `npm pack` gives to the archive of a package."""
    return f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"


def build_page(output: str | Path, model: str | Path | None = None, packages: str | Path = PACKAGES_FOLDER) -> Path:
    """
    Builds the folder of the web page.

    Args:
        output (`str` or `Path`): folder to create.
        model (`str` or `Path`, *optional*): a folder of `jvlm export-runtime --runtime onnx`, in float32. By default
            the shipped model is exported.
        packages (`str` or `Path`, *optional*): folder with the archives of `PACKAGES`. `npm pack` downloads those
            that it lacks.

    Returns:
        `Path`: `output`.

    Raises:
        FileExistsError: if `output` exists.
        FileNotFoundError: if `model` is no export, or an archive is missing and there is no npm.
        ValueError: if the page cannot answer with this export, or an archive is damaged.
    """
    packages = Path(packages)
    with tempfile.TemporaryDirectory() as temporary, new_folder(output) as folder:
        shutil.copytree(PAGE, folder, dirs_exist_ok=True)
        (folder / "packages").mkdir()
        for package in PACKAGES:
            _unpack(package, packages, folder / "packages")
        exported = Path(model or export_runtime(SHIPPED_MODEL, "onnx", Path(temporary) / "digits"))
        write_model(exported, folder, None if model else SHIPPED_MODEL / "samples")
    return Path(output)


def write_model(exported: Path, page: Path, samples: Path | None = None) -> None:
    """Writes `model/` of a page: the graphs of an export, its tokenizer, samples with questions, `settings.json`."""
    manifest = read_manifest(exported, "onnx")
    if manifest.dtype != "float32":
        raise ValueError(f"{exported} computes in {manifest.dtype}; export it with `--dtype float32`.")
    if not (exported / "answer.json").is_file():
        raise ValueError(f"{exported} has no answer.json: its processor does what neither answer.py nor the page can.")
    files = [
        name for name in manifest.files if name.removesuffix(".data").endswith(".onnx") or name.startswith("tokenizer")
    ]
    folder = page / "model"
    folder.mkdir()
    for name in files:
        shutil.copy(exported / name, folder)
    content = settings(exported)
    content["graphs"] = manifest.graphs
    loaded = [*(folder / name for name in files), *page.glob("packages/*.wasm")]
    content["sizes"] = {path.relative_to(page).as_posix(): path.stat().st_size for path in loaded}
    if samples:
        shutil.copytree(samples, folder / "samples")
        content["samples"] = json.loads((samples / "samples.json").read_text("utf-8"))
    (folder / "settings.json").write_text(json.dumps(content) + "\n", "utf-8")


def settings(exported: Path) -> dict:
    """
    What the page must know of an export, apart from graphs and tokenizer: its prompt, how it prepares images, and for
    every grid of tiles the text of its image tokens and the inputs of the connector.
    """
    config = AutoConfig.from_pretrained(exported)
    processor = AutoProcessor.from_pretrained(exported)
    image_processor = processor.image_processor
    if image_processor.do_resize:
        raise ValueError(f"The page has no code for `do_resize`, which {exported}/processor_config.json sets.")
    geometry = image_processor.geometry()
    grids = []
    for grid in possible_grids(image_processor.max_crops).tolist():
        positions = torch.tensor(geometry.token_positions(tuple(grid)))
        plan = jvlm.plan_images(positions)
        grids.append(
            {
                "grid": grid,
                "canvas": geometry.canvas_size(tuple(grid)),
                "tokens": processor.replace_image_token(
                    {"image_grids": [grid], "image_token_positions": positions.numpy()}, 0
                ),
                "num_encoded": len(plan.tile_indices),
                "cell_indices": plan.cell_indices.tolist(),
                "is_last_tile": plan.is_last_tile.int().tolist(),
            }
        )
    generation = json.loads((exported / "generation_config.json").read_text("utf-8"))
    stops = generation["eos_token_id"]
    text_config = config.text_config
    return {
        "prompt": json.loads((exported / "answer.json").read_text("utf-8")),
        "reserved": ["<|image|>", "<im_start>", "<im_end>", "<im_patch>", "<im_col>"],
        "image": {name: getattr(image_processor, name) for name in _IMAGE_SETTINGS},
        "tile_size": geometry.tile_size,
        "stride": geometry.stride,
        "layout": geometry.layout,
        "grids": grids,
        "image_token_id": config.image_token_id,
        "stops": stops if isinstance(stops, list) else [stops],
        "suppressed": generation.get("suppress_tokens") or [],
        "max_length": text_config.max_position_embeddings,
        "cache_shape": [1, text_config.num_key_value_heads, 0, text_config.head_dim],
    }


def _unpack(package: str, packages: Path, folder: Path) -> None:
    """Copies the files of a package whose archive has the right digest; downloads the archive if it is missing."""
    version, digest, files = PACKAGES[package]
    path = packages / archive(package, version)
    if not path.is_file():
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError(
                f"There is no {path}, and no npm to download it; install Node.js or copy it there."
            )
        packages.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", f"{package}@{version}", "--pack-destination", str(packages)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FileNotFoundError(f"npm could not download {package}@{version}: {done.stderr.strip()}")
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != digest:
        raise ValueError(f"{path} is damaged: its digest is {found}, not {digest}. Remove it.")
    with tarfile.open(path) as opened:
        for name, target in files.items():
            (folder / target).write_bytes(opened.extractfile(f"package/{name}").read())


def main(argv: list[str] | None = None) -> None:
    parser = argument_parser("python -m examples.browser.build", __doc__)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--model", metavar="DIR", help="an export for ONNX Runtime, by default of the shipped model")
    parser.add_argument(
        "--packages", default=PACKAGES_FOLDER, metavar="DIR", help="where the npm packages (.tgz) are or will be"
    )
    print(f"Saved: {run(parser, build_page, argv)}")


if __name__ == "__main__":
    main()
