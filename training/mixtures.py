# Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
"""Weighted mixtures of data sets: batches of one data set first and mixed ones later, as in arXiv 2512.04032."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset as Rows
from torch.utils.data import Dataset

from .formats import DATA_SET, RowFormat, check_test_rows, load_rows


@dataclass
class MixtureSource:
    """
    A data set of a mixture.

    Args:
        path (`str`): file, glob, folder or Hub id, see [`load_rows`].
        weight (`float`): its share of the rows, relative to the other weights.
        name (`str`, *optional*): how logs call it. Defaults to the last part of `path`, without its extension.
        text_only (`bool`): whether its rows have no images; `text_only_share` is for these data sets together.
        split, config (`str`): see [`load_rows`].
        test_split (`str`, *optional*): the split to evaluate on, by itself.
        columns, question, image_marker, image_folder: see [`RowFormat`].
    """

    path: str
    weight: float = 1.0
    name: str | None = None
    text_only: bool = False
    split: str = "train"
    test_split: str | None = None
    config: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    question: str | None = None
    image_marker: str = "<image>"
    image_folder: str | None = None

    def __post_init__(self):
        self.name = self.name or Path(self.path.replace("*", "")).name.split(".")[0] or self.path
        if not self.weight > 0:
            raise ValueError(f"The weight of {self.name} is {self.weight}, but must be above 0.")

    def row_format(self) -> RowFormat:
        """The format of its rows."""
        return RowFormat.of(
            self.path,
            self.image_folder,
            columns=self.columns,
            question=self.question,
            image_marker=self.image_marker,
            name=self.name,
            text_only=self.text_only,
        )

    def test_rows(self) -> Rows | None:
        """The rows to evaluate on, with the name of the data set in the column `__data_set__`."""
        if self.test_split is None:
            return None
        rows = load_rows(self.path, self.test_split, self.config)
        return rows.add_column(DATA_SET, [self.name] * len(rows))


@dataclass
class MixtureConfig:
    """
    What a mixture is made of. [`MixtureConfig.load`] reads it from YAML.

    Args:
        datasets (`list[MixtureSource]`): the data sets.
        single_source_steps (`int`): number of steps, from the first on, whose rows all come from one data set.
        text_only_share (`float`, *optional*): share of the data sets with `text_only`, together. Their weights, and
            those of the others, are scaled to it. By default, the weights are taken as they are.

    Raises:
        ValueError: if an argument is unknown or out of its range, two data sets have one name, the share of texts
            cannot be reached, or rows to evaluate on are among those to train on.
    """

    datasets: list[MixtureSource]
    single_source_steps: int = 0
    text_only_share: float | None = None

    def __post_init__(self):
        self.datasets = [
            source if isinstance(source, MixtureSource) else _build(MixtureSource, source) for source in self.datasets
        ]
        names = [source.name for source in self.datasets]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"A mixture needs data sets with names of their own, got {names}; set `name`.")
        for source in self.datasets:
            if source.test_split is not None:
                self.check_test_rows(source.path, source.test_split, source.config)
        if self.single_source_steps < 0:
            raise ValueError(f"`single_source_steps` is {self.single_source_steps}, but must be 0 or more.")
        if self.text_only_share is not None:
            are_text = {source.text_only for source in self.datasets}
            if not 0 < self.text_only_share < 1 or are_text != {True, False}:
                raise ValueError(
                    f"`text_only_share` is {self.text_only_share}, but must be between 0 and 1, and needs data sets "
                    "with and without `text_only: true`."
                )

    @classmethod
    def load(cls, text: str) -> "MixtureConfig":
        """Reads the YAML file of this name, or YAML that begins with `{`."""
        settings = yaml.safe_load(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
        return _build(cls, settings)

    def check_test_rows(self, path: str, split: str, config: str | None = None) -> None:
        """Raises a `ValueError` if rows of a split to evaluate on are among those to train on."""
        for source in self.datasets:
            if source.config == config:
                check_test_rows(source.path, source.split, path, split, config)

    def shares(self) -> np.ndarray:
        """The share of each data set, in order; they sum up to 1."""
        weights = np.array([float(source.weight) for source in self.datasets])
        if self.text_only_share is not None:
            is_text = np.array([source.text_only for source in self.datasets])
            weights[is_text] *= self.text_only_share / weights[is_text].sum()
            weights[~is_text] *= (1 - self.text_only_share) / weights[~is_text].sum()
        return weights / weights.sum()


def _build(cls, settings: Any):
    names = [one.name for one in fields(cls)]
    if not isinstance(settings, dict) or (unknown := sorted(set(settings) - set(names))):
        found = unknown[0] if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"A {cls.__name__} has the settings {', '.join(names)}, not {found!r}.")
    if missing := [name for name in names[:1] if name not in settings]:
        raise ValueError(f"A {cls.__name__} needs `{missing[0]}`.")
    return cls(**settings)


class Mixture(Dataset):
    """
    The rows of a mixture in the order of a training, to be read in sequence (`train_sampling_strategy="sequential"`).

    Row `index` is a function of the seed, the index, the batch size and the data sets alone. A run that resumes at a
    step therefore goes on with its row, and the rows of a step are the same in one process and in many. Every data set
    is read in a random order, and again in another one when all its rows were read.

    Args:
        config ([`MixtureConfig`]): what it is made of.
        num_steps (`int`): number of optimizer steps.
        rows_per_step (`int`): number of rows per step over all devices.
        seed (`int`): seed of the order.
        data_sets (`list`, *optional*): the rows of each data set. By default, they are loaded.

    Returns:
        Rows as they are in the data set, with its name in the column `__data_set__`, for [`RowCollator`] with
        `formats`.
    """

    def __init__(
        self, config: MixtureConfig, num_steps: int, rows_per_step: int, seed: int = 0, data_sets: list | None = None
    ):
        self.config = config
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.data_sets = data_sets or [load_rows(one.path, one.split, one.config) for one in config.datasets]
        for source, rows in zip(config.datasets, self.data_sets, strict=True):
            if not hasattr(rows, "__len__"):
                raise ValueError(f"{source.name} is a stream, but a mixture draws rows by their number; load them.")
            if not len(rows):
                raise ValueError(f"{source.name} has no rows.")
        self.formats = {source.name: source.row_format() for source in config.datasets}
        bounds = np.cumsum(config.shares())[:-1]
        num_single = min(config.single_source_steps, num_steps)
        # The draws of a longer run begin with those of a shorter one.
        of_steps = np.random.default_rng([seed, 0]).random(num_single)
        of_rows = np.random.default_rng([seed, 1]).random((num_steps - num_single) * rows_per_step)
        draws = np.concatenate([of_steps.repeat(rows_per_step), of_rows])
        self.sources = np.searchsorted(bounds, draws, side="right").astype(np.int16)  # [rows]
        self.positions = np.zeros(len(self.sources), dtype=np.int64)  # of a row among those of its data set
        for number in range(len(self.data_sets)):
            is_of_source = self.sources == number
            self.positions[is_of_source] = np.arange(is_of_source.sum())
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict:
        number, row = self.locate(index)
        return {**self.data_sets[number][row], DATA_SET: self.config.datasets[number].name}

    def locate(self, index: int) -> tuple[int, int]:
        """The numbers of the data set and of its row that the row `index` is."""
        number = int(self.sources[index])
        size = len(self.data_sets[number])
        round_, position = divmod(int(self.positions[index]), size)
        if self._orders.get(number, (-1, None))[0] != round_:
            self._orders[number] = round_, np.random.default_rng([self.seed, 2, number, round_]).permutation(size)
        return number, int(self._orders[number][1][position])

    def distinct_rows(self) -> np.ndarray:
        """The indices at which a row of a data set is drawn for the first time."""
        sizes = np.array([len(rows) for rows in self.data_sets])
        return np.flatnonzero(self.positions < sizes[self.sources])

    def describe(self) -> str:
        """Data sets, rows and shares in a few lines of text."""
        drawn = np.bincount(self.sources, minlength=len(self.data_sets))
        lines = [
            f"Mixture: {len(self) // self.rows_per_step} steps of {self.rows_per_step} rows, up to step "
            f"{self.config.single_source_steps} of one data set each"
        ]
        for source, rows, count, share in zip(
            self.config.datasets, self.data_sets, drawn, self.config.shares(), strict=True
        ):
            kind = ", text only" if source.text_only else ""
            lines.append(
                f"  {source.name:<20} {share:6.1%}, {count:,} rows drawn of {len(rows):,} "
                f"({count / len(rows):.3g} epochs){kind}"
            )
        return "\n".join(lines)


__all__ = ["Mixture", "MixtureConfig", "MixtureSource"]
