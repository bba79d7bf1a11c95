"""Read the rows of a dataset of the Hugging Face hub, the names of its labels in the place of their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config.schema import DatasetConfig
from ..files.errors import ConfigError
from .rows import Row, without_nulls


def rows(dataset: DatasetConfig, split: str) -> Iterator[Row]:
    """Yield the rows of a split, counted from 0 as the hub counts them."""
    import datasets

    table = datasets.load_dataset(dataset.id, dataset.subset, split=split, revision=dataset.revision)
    labels = {column: feature for column, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)}
    target = (dataset.columns or {}).get("target", dataset.target_column)
    for number, row in enumerate(table):
        where = f"dataset.id={dataset.id}: {split}, row {number}"
        value = {column: without_nulls(part) for column, part in row.items()}
        for column, feature in labels.items():
            value[column] = _label(value[column], feature, f"{where}: '{column}'")
        if dataset.format == "pairs" and isinstance(value.get(target), bool | int | float):
            value[target] = str(value[target])  # a number is an answer too
        yield Row(number, where, value)


def _label(number: int | None, feature: Any, where: str) -> str | None:
    """Name a label; -1 stands for none, as in test splits whose labels are kept back."""
    if number is None or number == -1:
        return None
    try:
        name: str = feature.int2str(number)
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{where} is {number}, which is the number of no label") from error
    return name
