# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""
Checks a port of JinaVLM to another framework, stage by stage, with a folder that `porting_kit` has written. The port
is any program that talks JSON lines over standard input and output; README.md of the folder has the protocol. The exit
status is 0 if all stages are equal, 1 if one differs, 2 if the port cannot be checked.

    python -m jvlm.conversion_scripts.check_port porting_kit -- python -m jvlm.conversion_scripts.reference_port

The folder has a copy of this program, which needs numpy and safetensors only: `python check_port.py . -- my-port`.
"""

import argparse
import base64
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


PROTOCOL = 1
# In the order of the computation. A stage that differs makes the later ones differ.
STAGES = (
    "prompt",
    "pixels",
    "positions",
    "input_ids",
    "features",
    "connector",
    "embeddings",
    "logits",
    "tokens",
)
GIVEN = STAGES[:-2]  # whose expected values a port can be given; no stage is computed from the last two
TIMEOUT = 300.0  # seconds
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "uint8", "bool")
Answer = dict[str, Any]


class PortError(ValueError):
    """The port cannot be checked: it does not run, or what it writes is no answer."""


@dataclass
class StageResult:
    """
    The comparison of one stage of one case.

    Args:
        checkpoint (`str`), case (`str`), stage (`str`): what was compared.
        verdict (`str`): "equal", "different", "follows" (different after an earlier difference), "skipped" (the port
            does not offer the stage) or "error" (the port could not compute the case).
        difference (`float`): largest absolute difference; of integers, how many differ.
        tolerance (`float`): largest difference that counts as equal.
        size (`float`): root mean square of the expected values.
        note (`str`): shapes or values where they differ, or the error of the port.
        hint (`str`): the likely cause, if it is known.
        given (`tuple[str, ...]`): earlier stages of which the port was given the expected values, because its own
            differ.
    """

    checkpoint: str
    case: str
    stage: str
    verdict: str
    difference: float = 0.0
    tolerance: float = 0.0
    size: float = 0.0
    note: str = ""
    hint: str = ""
    given: tuple[str, ...] = ()


class PortProcess:
    """
    A running port. It is ended, with all programs that it started, when the block ends.

    Args:
        command (`Sequence[str]`): the program and its arguments.
        timeout (`float`): seconds to wait for each answer.

    Raises:
        PortError: if the program cannot be started. `ask` raises it if the program ends, writes something that is no
            answer, or does not answer in time.
    """

    def __init__(self, command: Sequence[str], timeout: float = TIMEOUT):
        self.command, self.timeout = list(command), timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `__exit__`
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        try:
            self._process = subprocess.Popen(self.command, **pipes, start_new_session=True)
        except OSError as error:
            self._errors.close()
            raise PortError(f"{self.command[0]!r} cannot be started: {error.strerror}.") from error
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> "PortProcess":
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            if error == (None, None, None):
                self._process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._process.kill()
        self._process.wait()
        self._errors.close()

    def _read(self) -> None:
        for line in self._process.stdout:  # type: ignore[union-attr]
            self._lines.put(line)
        self._lines.put(None)

    def ask(self, request: Mapping[str, Any]) -> Answer:
        """Sends a request and returns the answer, a JSON object with the `id` of the request."""
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except OSError as error:
            raise self._ended(request) from error
        try:
            line = self._lines.get(timeout=self.timeout)
        except queue.Empty as error:
            raise PortError(
                f"The port has not answered the request {request['id']!r} within {self.timeout:g} s; is the output "
                f"flushed after each line? --timeout sets another limit.{self._last_errors()}"
            ) from error
        if line is None:
            raise self._ended(request)
        text = line.decode(errors="replace").strip()
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PortError(
                f"The port wrote a line that is not JSON: {_short(text)}. Only answers may go to standard output; "
                "write everything else to standard error."
            ) from error
        if not isinstance(answer, dict) or answer.get("id") != request["id"]:
            raise PortError(f'The answer must be an object with "id": {request["id"]!r}, got {_short(text)}.')
        return answer

    def _ended(self, request: Mapping[str, Any]) -> PortError:
        try:
            status = f"with exit status {self._process.wait(timeout=5)}"
        except subprocess.TimeoutExpired:
            status = "its standard input or output, though it still runs"
        text = f"The port has ended {status} before it answered the request {request['id']!r}."
        return PortError(text + self._last_errors())

    def _last_errors(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f" Its standard error ends with: {' | '.join(lines[-3:])}" if lines else ""


def check_port(
    kit: str | Path,
    ask: Callable[[dict[str, Any]], Answer],
    checkpoints: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    tolerance: float | None = None,
    stages: Sequence[str] | None = None,
    report: Callable[[StageResult], None] = lambda result: None,
) -> list[StageResult]:
    """
    Compares the answers of a port with the expected ones.

    Where a stage differs and the port can be given its expected values, the case is asked again with these, so that
    faults of later stages show as well.

    Args:
        kit (`str` or `Path`): the folder that `porting_kit` has written.
        ask (`Callable`): sends a request to the port and returns its answer, see [`PortProcess`].
        checkpoints (`Sequence[str]`, *optional*): names of checkpoints of the kit, by default all that the port reads.
        cases (`Sequence[str]`, *optional*): names of cases, by default all.
        tolerance (`float`, *optional*): largest difference relative to the root mean square of a stage, in place of
            that of the kit. Ports in bfloat16 need about 0.05.
        stages (`Sequence[str]`, *optional*): stages to compare, by default all that the port offers.
        report (`Callable`, *optional*): called with each result.

    Raises:
        PortError: if an answer of the port is no answer. The message names the checkpoint, the case and the stage.
        ValueError: if the kit is incomplete or a name is unknown.
    """
    kit = Path(kit)
    index = _read_index(kit)
    offered, inputs, names = _read_hello(ask({"id": "hello", "type": "hello", "protocol": PROTOCOL}), index)
    names = _choose("checkpoint", checkpoints, index["checkpoints"], names)
    chosen = _choose("case", cases, [case["name"] for case in index["cases"]])
    offered = [stage for stage in offered if stage in _choose("stage", stages, STAGES)]
    results: list[StageResult] = []
    for name in names:
        for case in index["cases"]:
            golden = case["golden"].get(index["checkpoints"][name]["golden"])
            if case["name"] not in chosen or golden is None:
                continue
            expected = {**load_file(kit / golden["file"]), "prompt": golden["prompt"]}
            checked = _Case(kit, index, name, case, golden, expected, tolerance)
            for result in checked.check(ask, offered, inputs):
                results.append(result)
                report(result)
    return results


def _read_index(kit: Path) -> dict[str, Any]:
    try:
        index = json.loads((kit / "index.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{kit} is no porting kit: it has no index.json. Write one with `porting_kit`.") from error
    if index["protocol"] != PROTOCOL:
        raise ValueError(f"{kit} has the protocol {index['protocol']}, but this program {PROTOCOL}; write it again.")
    return index


def _read_hello(hello: Answer, index: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Stages that a port offers, stages that it takes as given, and the checkpoints that it reads."""
    if hello.get("protocol") != PROTOCOL:
        raise PortError(f'The answer to "hello" must have "protocol": {PROTOCOL}, got {_short(hello)}.')
    lists = []
    for field, known, default in (
        ("stages", STAGES, ()),
        ("given", GIVEN, ()),
        ("checkpoints", tuple(index["checkpoints"]), tuple(index["checkpoints"])),
    ):
        value = hello.get(field, default)
        if not isinstance(value, (list, tuple)) or not set(value) <= set(known):
            raise PortError(
                f'"{field}" of the answer to "hello" must be a list of {list(known)}, got {_short(value)}.'
            )
        lists.append([name for name in known if name in value])
    if not lists[0]:
        raise PortError(f'"stages" of the answer to "hello" is empty; name at least one of {list(STAGES)}.')
    return lists[0], lists[1], lists[2]


def _choose(kind: str, wanted: Sequence[str] | None, known: Any, default: Sequence[str] | None = None) -> list[str]:
    known = list(known)
    if wanted is None:
        return list(known if default is None else default)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"{unknown[0]!r} is no {kind} of the kit; choose from {', '.join(known)}.")
    return list(wanted)


@dataclass
class _Case:
    """One case with one checkpoint."""

    kit: Path
    index: dict[str, Any]
    checkpoint: str
    case: dict[str, Any]
    golden: dict[str, Any]
    expected: dict[str, Any]
    relative: float | None

    def check(self, ask: Callable, offered: list[str], inputs: list[str]) -> Iterator[StageResult]:
        wanted = [stage for stage in STAGES if stage in self.expected and stage in offered]
        given: list[str] = []
        is_different = False
        answer = self._ask(ask, wanted, given)
        for stage in STAGES:
            if stage not in self.expected:
                continue
            if stage not in answer:
                if stage in wanted and "error" in answer:
                    yield self._result(stage, "error", note=_short(answer["error"]), given=tuple(given))
                    return
                yield self._result(stage, "skipped")
                continue
            result = self._compare(stage, answer[stage], tuple(given))
            if result.verdict == "different" and is_different:
                result = self._result(stage, "follows", result.difference, result.tolerance, given=tuple(given))
            yield result
            if result.verdict != "different":
                continue
            is_different = True
            later = wanted[wanted.index(stage) + 1 :]
            if stage in inputs and self._is_complete(stage) and later:
                given.append(stage)
                answer, is_different = self._ask(ask, later, given), False

    def _result(self, stage: str, verdict: str, *values, **fields) -> StageResult:
        return StageResult(self.checkpoint, self.case["name"], stage, verdict, *values, **fields)

    def _is_complete(self, stage: str) -> bool:
        return stage == "prompt" or set(self.golden["stages"][stage]["step"]) <= {1}

    def _ask(self, ask: Callable, stages: list[str], given: list[str]) -> Answer:
        """The values of the stages as strings and arrays; `error` if the port could not compute all of them."""
        with tempfile.TemporaryDirectory(prefix="check_port-") as folder:
            request = {
                "id": f"{self.checkpoint}/{self.case['name']}" + "".join(f"+{stage}" for stage in given),
                "type": "case",
                "checkpoint": self._checkpoint_folder(),
                "images": [str((self.kit / image).resolve()) for image in self.case["images"]],
                "messages": self.case["messages"],
                "stages": stages,
                "max_new_tokens": self.index["max_new_tokens"],
                "given": {stage: self._encode(stage) for stage in given},
                "output_folder": folder,
            }
            answer = ask(request)
            error = {"error": answer["error"]} if "error" in answer else {}
            values = answer.get("stages", {} if error else None)
            if not isinstance(values, dict):
                raise PortError(f'The answer to {request["id"]!r} has neither "stages" nor "error": {_short(answer)}.')
            with _naming(request["id"]):
                found = {
                    stage: self._decode(stage, values[stage], Path(folder)) for stage in stages if stage in values
                }
            return {**found, **error}

    def _checkpoint_folder(self) -> str:
        folder = self.kit / self.index["checkpoints"][self.checkpoint]["folder"]
        return str(folder.resolve()) if folder.exists() else self.index["checkpoints"][self.checkpoint]["folder"]

    def _encode(self, stage: str) -> Any:
        return self.expected[stage] if stage == "prompt" else encode_array(self.expected[stage])

    def _decode(self, stage: str, value: Any, folder: Path) -> Any:
        if stage == "prompt":
            if not isinstance(value, str):
                raise PortError(f"prompt must be a string, got {_short(value)}.")
            return value
        array = decode_array(stage, value, folder)
        if array.dtype.kind not in "fiub":
            raise PortError(f"{stage} must hold numbers, got {array.dtype}.")
        if array.ndim == len(self.golden["stages"][stage]["shape"]) + 1 and array.shape[0] == 1:
            array = array[0]  # a batch of one
        return array

    def _compare(self, stage: str, value: Any, given: tuple[str, ...]) -> StageResult:
        expected = self.expected[stage]
        if stage == "prompt":
            is_equal = value == expected
            note = "" if is_equal else f"{_around(value, expected)} instead of {_around(expected, value)}"
            result = self._result(stage, "equal" if is_equal else "different", float(not is_equal), note=note)
        else:
            result = self._compare_arrays(stage, value)
        result.given = given
        if result.verdict == "different":
            result.hint = find_cause(stage, value, expected, self)
        return result

    def sample(self, stage: str, value: np.ndarray) -> np.ndarray:
        """The values that the kit stores of a stage."""
        starts, steps = (self.golden["stages"][stage][name] for name in ("start", "step"))
        return value[tuple(slice(start, None, step) for start, step in zip(starts, steps, strict=True))]

    def _compare_arrays(self, stage: str, value: np.ndarray) -> StageResult:
        expected, shape = self.expected[stage], tuple(self.golden["stages"][stage]["shape"])
        if stage == "logits" and value.ndim == 1 and len(value) > shape[0]:
            value = value[: shape[0]]  # rows without a token
        if stage == "tokens" and value.ndim == 1:
            value, expected = self._comparable_tokens(value, expected)
            shape = expected.shape
        if value.shape != shape:
            return self._result(stage, "different", float("inf"), note=f"shape {list(value.shape)}, not {list(shape)}")
        if stage != "tokens":
            value = self.sample(stage, value)
        if expected.dtype.kind in "iu":
            difference, tolerance, size = float((value != expected).sum()), 0.0, 0.0
        else:
            relative = self.index["tolerances"][stage] if self.relative is None else self.relative
            with np.errstate(invalid="ignore"):
                each = np.nan_to_num(np.abs(value.astype(np.float64) - expected), nan=np.inf, posinf=np.inf)
            size = float(np.sqrt(np.square(expected, dtype=float).mean()))
            difference, tolerance = float(each.max()), relative * size
        if difference <= tolerance:
            return self._result(stage, "equal", difference, tolerance, size)
        place = np.argwhere(value != expected)[0] if tolerance == 0 else np.argwhere(each > tolerance)[0]
        share = difference if tolerance == 0 else (each > tolerance).sum()
        note = f"{share / expected.size:.1%} of the values, first at {place.tolist()}"
        if stage in self.golden["stages"] and stage != "tokens":
            starts, steps = (self.golden["stages"][stage][name] for name in ("start", "step"))
            note = f"{share / expected.size:.1%} of the values, first at {(place * steps + starts).tolist()}"
        note += f": {value[tuple(place)]:.6g} instead of {expected[tuple(place)]:.6g}"
        return self._result(stage, "different", difference, tolerance, size, note)

    def _comparable_tokens(self, value: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Without end tokens, which ports may leave out, and without what follows a near tie."""
        ends = self.index["checkpoints"][self.checkpoint]["end_tokens"]

        def strip(tokens: np.ndarray) -> np.ndarray:
            return tokens[: int(np.isin(tokens, ends).argmax())] if np.isin(tokens, ends).any() else tokens

        is_whole = np.isin(expected, ends).any()
        value, expected = strip(value), strip(expected)
        return (value if is_whole else value[: len(expected)]), expected


@contextmanager
def _naming(request: str) -> Iterator[None]:
    try:
        yield
    except PortError as error:
        raise PortError(f"The answer to {request!r}: {error}") from error


def encode_array(array: np.ndarray) -> dict[str, Any]:
    """An array as `dtype`, `shape` and `base64` (little-endian, last axis fastest)."""
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(content.tobytes()).decode("ascii"),
    }


def decode_array(name: str, value: Any, folder: Path) -> np.ndarray:
    """
    An array of an answer.

    Args:
        name (`str`): its stage, for error messages and as its name in a safetensors file.
        value: nested lists, an object with `dtype`, `shape` and `base64`, or an object with `file`, the path of an
            `.npy` or `.safetensors` file, absolute or relative to `folder`.
        folder (`Path`): the folder that a port may write to.

    Raises:
        PortError: if it is none of these.
    """
    try:
        if isinstance(value, dict) and "file" in value:
            file = folder / str(value["file"])
            if file.suffix == ".safetensors":
                return load_file(file)[name]
            return np.load(file, allow_pickle=False)
        if isinstance(value, dict):
            if value["dtype"] not in DTYPES:
                raise PortError(f'"dtype" of {name} must be one of {", ".join(DTYPES)}, got {value["dtype"]!r}.')
            content = base64.b64decode(value["base64"], validate=True)
            return np.frombuffer(content, np.dtype(value["dtype"]).newbyteorder("<")).reshape(value["shape"])
        if isinstance(value, list):
            return np.array(value)
    except PortError:
        raise
    except KeyError as error:
        raise PortError(f"{name} lacks {error}, got {_short(value)}.") from error
    except Exception as error:  # NumPy and safetensors raise errors of many classes for damaged files
        raise PortError(f"{name} cannot be read ({_short(value)}): {error}") from error
    raise PortError(
        f'{name} must be nested lists or an object with "dtype", "shape" and "base64", or with "file"; got '
        f"{_short(value)}."
    )


def find_cause(stage: str, value: Any, expected: Any, case: _Case) -> str:
    """The likely causes of a difference, empty if none is known."""
    if stage == "prompt":
        return "; ".join(_prompt_causes(value, expected))
    if stage == "input_ids":
        return "; ".join(_token_causes(value, expected, case))
    if stage == "positions":
        return "; ".join(_position_causes(value, expected, case))
    if stage == "tokens":
        return "the logits are equal, so look at suppressed tokens, end tokens and the cache"
    return "; ".join(_array_causes(stage, value, expected, case))


def _prompt_causes(value: str, expected: str) -> Iterator[str]:
    if value.count("Assistant:") > expected.count("Assistant:"):
        yield '"Assistant:" is written once too often'
    elif value == expected.lstrip():
        yield "the leading space is lost"
    elif "".join(value.split()) == "".join(expected.split()):
        yield "spaces or line breaks differ"
    elif value.replace("<|image|>", "") == expected.replace("<|image|>", ""):
        yield "<|image|> stands elsewhere than in the content"
    else:
        yield "render the chat template of the checkpoint with `add_generation_prompt`"


def _token_causes(value: np.ndarray, expected: np.ndarray, case: _Case) -> Iterator[str]:
    checkpoint = case.index["checkpoints"][case.checkpoint]
    bos, tokens, cell = checkpoint["bos_token"], checkpoint["image_tokens"], checkpoint["cell_token"]
    if bos is not None and value[:1] != bos:
        yield f"the first token, BOS {bos}, is missing"
        value = np.append([bos], value)
    elif bos is not None and list(value[:2]) == [bos, bos]:
        yield f"BOS {bos} is there twice"
        value = value[1:]
    is_image, is_own_image = (np.isin(ids, list(tokens.values())) for ids in (expected, value))
    num_cells, num_expected = (int((ids == cell).sum()) for ids in (value, expected))
    if np.array_equal(value, expected):
        return
    if value.shape == expected.shape and not is_own_image.any() and (value[~is_image] == expected[~is_image]).all():
        yield f"the ids of the image tokens are {tokens}; read them from the tokenizer"
    elif num_cells != num_expected:
        yield f"{num_cells} tokens of cells instead of {num_expected}; {_cells_of_tiles(case)}"
    elif np.array_equal(value[~is_own_image], expected[~is_image]):
        yield "the markers of images differ: <im_start>, rows of cells that end with <im_col> each, <im_end>"
    else:
        yield "the text is split into other tokens; compare normalisation and pre-tokenisation"


def _cells_of_tiles(case: _Case) -> str:
    rows, cols = case.index["checkpoints"][case.checkpoint]["pooled_grid"]
    return f"a tile of this layout has {rows}×{cols} = {rows * cols} cells"


def _position_causes(value: np.ndarray, expected: np.ndarray, case: _Case) -> Iterator[str]:
    if value.ndim == 2 and value.shape[1] != expected.shape[1]:
        yield f"{value.shape[1]} cells a tile; {_cells_of_tiles(case)}"
    elif value.shape != expected.shape:
        yield "another number of tiles: compare the first resize and the choice of the grid"
    elif np.array_equal(value < 0, expected < 0):
        yield "cells are in another order; in the stitched layout it is row by row over the whole image"
    else:
        yield "other cells are dropped; in the stitched layout these are the ones in the margins between tiles"


def _array_causes(stage: str, value: np.ndarray, expected: np.ndarray, case: _Case) -> Iterator[str]:
    shape = tuple(case.golden["stages"][stage]["shape"])
    if stage == "logits" and value.ndim == 1:
        value = value[: shape[0]]
    if value.shape != shape:
        if stage == "pixels" and value.ndim == 4 and value.shape[1:] == shape[1:]:
            yield "another number of tiles: compare the first resize and the choice of the grid"
        elif value.size == np.prod(shape):
            yield f"the values may be right; reshape or transpose them to {list(shape)}"
        return
    value = case.sample(stage, value)
    # Twice as far as the largest difference that counts as equal, because ports round in another way.
    limit = 2 * case.index["tolerances"][stage] * np.sqrt(np.square(expected, dtype=float).mean())
    faults = {name.partition(": ")[2]: other for name, other in case.expected.items() if name.startswith(f"{stage}: ")}
    if stage == "pixels":
        faults |= _wrong_pixels(expected)
    if cause := _nearest_fault(value, expected, faults, limit):
        yield cause
    elif stage == "pixels" and np.abs(value - expected).max() < 0.02:
        yield "the differences are one or two levels of 8 bits: rounding, or another decoder"
    elif stage in ("features", "connector"):
        yield from _tile_causes(stage, ~(np.abs(value - expected) <= limit), case)


def _wrong_pixels(expected: np.ndarray) -> dict[str, np.ndarray]:
    """The values with faults that can be computed from the right ones."""
    return {
        "the channels are in the order blue, green, red": expected[:, ::-1],
        "the range is 0 to 1 instead of -1 to 1": (expected + 1) / 2,
        "the range is 0 to 255 instead of -1 to 1": (expected + 1) * 127.5,
        "the thumbnail comes last instead of first": np.roll(expected, -1, axis=0),
    }


def _nearest_fault(value: np.ndarray, expected: np.ndarray, faults: dict[str, np.ndarray], limit: float) -> str:
    faults = {cause: wrong for cause, wrong in faults.items() if wrong.shape == value.shape}
    exact = [cause for cause, wrong in faults.items() if (np.abs(value - wrong) <= limit).all()]
    if exact:
        return exact[0]
    distances = {cause: float(np.abs(value - wrong).mean()) for cause, wrong in faults.items()}
    nearest = min(distances, key=distances.__getitem__, default="")
    is_near = nearest and distances[nearest] < 0.5 * np.abs(value - expected).mean()
    return f"not exactly, but nearly: {nearest}" if is_near else ""


def _tile_causes(stage: str, differs: np.ndarray, case: _Case) -> Iterator[str]:
    positions = case.expected["positions"]
    tiles = np.arange(len(positions)) if stage == "features" else _tiles_of_tokens(positions)
    found = np.unique(tiles[differs.reshape(len(differs), -1).any(axis=1)])
    last = np.append(np.flatnonzero(positions[:, 0] == 0)[1:], len(positions)) - 1
    if stage == "connector" and np.array_equal(found, last):
        yield "only the last tile of each image differs: is its embedding added?"
    elif 0 < len(found) < len(positions):
        yield f"only tiles {found.tolist()} of {len(positions)} differ (0 is the first thumbnail)"


def _tiles_of_tokens(positions: np.ndarray) -> np.ndarray:
    """The tile of each image token, in sequence order."""
    image = (positions[:, 0] == 0).cumsum()
    tile, cell = (positions >= 0).nonzero()
    return tile[np.lexsort((positions[tile, cell], image[tile]))]


def _around(text: str, other: str) -> str:
    """The part of a text around its first difference from another one."""
    start = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, start - 15)
    return repr(text[start : start + 40])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    return text if len(text) <= 200 else f"{text[:200]}…"


SYMBOLS = {"equal": "=", "different": "X", "follows": "x", "skipped": "-", "error": "!"}


def format_results(results: Sequence[StageResult]) -> str:
    """A table of cases and stages for each checkpoint, then every difference with its likely cause."""
    lines = []
    for checkpoint in dict.fromkeys(result.checkpoint for result in results):
        own = [result for result in results if result.checkpoint == checkpoint]
        lines += [f"checkpoint {checkpoint}", " ".join([f"{'case':<18}", *(f"{stage:>10}" for stage in STAGES)])]
        for case in dict.fromkeys(result.case for result in own):
            marks = {each.stage: SYMBOLS[each.verdict] + "*" * bool(each.given) for each in own if each.case == case}
            lines.append(" ".join([f"{case:<18}", *(f"{marks.get(stage, ''):>10}" for stage in STAGES)]).rstrip())
        lines.append("")
    lines.append("= equal   X different   x different after X   - not offered   ! error   * given the expected inputs")
    for result in results:
        if result.verdict in ("different", "error"):
            lines.append(_describe(result))
    sizes = {stage: [each for each in results if each.stage == stage and each.size] for stage in STAGES}
    largest = {
        stage: max((each.difference / each.size for each in found if each.verdict == "equal"), default=None)
        for stage, found in sizes.items()
    }
    if shown := [f"{stage} {value:.1e}" for stage, value in largest.items() if value is not None]:
        lines.append(f"largest difference that counts as equal, relative to the values: {', '.join(shown)}")
    first = next((result for result in results if result.verdict in ("different", "error")), None)
    if first is not None:
        lines.append(f"different from here on: {first.checkpoint} {first.case} {first.stage}")
    elif all(result.verdict == "skipped" for result in results):
        lines.append("nothing was compared")
    else:
        skipped = [
            stage for stage in STAGES if any(each.stage == stage and each.verdict == "skipped" for each in results)
        ]
        lines.append("equal" + f", without {', '.join(skipped)}" * bool(skipped))
    return "\n".join(lines)


def _describe(result: StageResult) -> str:
    text = f"{result.checkpoint} {result.case} {result.stage}"
    if result.given:
        text += f" (given {', '.join(result.given)})"
    if result.verdict == "error":
        return f"{text}: the port reports {result.note}"
    if result.stage not in ("prompt", "positions", "input_ids", "tokens"):
        text += f": {result.difference:.3g}, tolerance {result.tolerance:.3g}"
    return f"{text}: {result.note}" + f"\n    likely cause: {result.hint}" * bool(result.hint)


def main(argv: list[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="check_port", description=__doc__, formatter_class=formatter)
    parser.add_argument("kit", metavar="KIT", help="folder that porting_kit has written")
    parser.add_argument("--checkpoint", action="append", metavar="NAME", help="checkpoint of the kit; can be repeated")
    parser.add_argument("--case", action="append", metavar="NAME", help="case of the kit; can be repeated")
    parser.add_argument("--stage", action="append", choices=STAGES, help="stage to compare; can be repeated")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="limit for each answer")
    parser.add_argument(
        "--tolerance", type=float, metavar="SHARE", help="largest difference, relative to the size of a stage's values"
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="-- program of the port, with its arguments")
    args = parser.parse_args(argv)
    results: list[StageResult] = []
    show = sys.stderr.isatty()

    def report(result: StageResult) -> None:
        results.append(result)
        if show and result.stage == STAGES[-1]:
            print(f"{result.checkpoint} {result.case}", file=sys.stderr)

    try:
        with PortProcess(args.command, args.timeout) as port:
            check_port(args.kit, port.ask, args.checkpoint, args.case, args.tolerance, args.stage, report)
    except (OSError, ValueError) as error:
        if results:
            print(format_results(results))
        parser.exit(2, f"check_port: error: {error}\n")
    print(format_results(results))
    return 1 if any(result.verdict in ("different", "error") for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
