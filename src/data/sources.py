"""Name the keys of ``dataset`` that each source reads, and refuse one that is set and does nothing."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from ..config.schema import CONF_FOLDER, DatasetConfig
from ..files.errors import ConfigError
from . import rows

# key: the sources that read it, as ``kind`` names them. A key that is not listed is read whatever the source is.
READERS: dict[str, tuple[str, ...]] = {
    "format": ("file", "folder", "hub"),
    "path": ("file", "folder"),
    "val_path": ("file", "folder"),
    "test_path": ("file", "folder"),
    "train_files": ("folder",),
    "val_files": ("folder",),
    "test_files": ("folder",),
    "files_from": ("file", "folder"),
    "id": ("hub",),
    "revision": ("hub",),
    "subset": ("hub",),
    "train_split": ("hub",),
    "val_split": ("hub",),
    "test_split": ("hub",),
    "prompt_column": ("file", "folder", "hub"),
    "target_column": ("file", "folder", "hub"),
    "columns": ("file", "folder", "hub"),
    "ignore_columns": ("file", "folder", "hub"),
}


def from_hub(dataset: DatasetConfig) -> bool:
    """Tell whether the rows come from the Hugging Face hub."""
    return dataset.source == "hub" or (dataset.source == "task" and not dataset.path and dataset.id is not None)


def kind(dataset: DatasetConfig) -> str:
    """Name the place that the rows come from: cldr_names, hub, a file, or a folder (or a .zip) of files."""
    if dataset.source == "cldr_names" or from_hub(dataset):
        return "cldr_names" if dataset.source == "cldr_names" else "hub"
    return "folder" if dataset.path and rows.holds_files(dataset.path) else "file"


def refuse_idle(dataset: DatasetConfig) -> None:
    """Raise ConfigError where a key of ``dataset`` is set by the user and does nothing."""
    place, default = kind(dataset), DatasetConfig()
    name = dataset.name or dataset.source
    for key, value in ((entry.name, getattr(dataset, entry.name)) for entry in fields(dataset)):
        if value == getattr(default, key) or value in written(dataset, key):
            continue
        if place not in READERS.get(key, (place,)):
            from_where = {"cldr_names": "", "hub": ", whose rows are the hub's"}.get(place, f" and a {place} as dataset.path")
            raise ConfigError(f"dataset.{key}: does nothing with dataset={name}{from_where if dataset.source != 'hub' else ''}")
        if key in ("prompt_column", "target_column") and dataset.format != "pairs":
            raise ConfigError(
                f"dataset.{key}: does nothing with dataset.format={dataset.format}; dataset.columns names its columns"
            )
        if key in ("val_share", "test_share") and (other := _own_split(dataset, place, key.removesuffix("_share"))):
            raise ConfigError(f"dataset.{key}: does nothing beside dataset.{other}, which has the rows of this split")
        if key in ("val_files", "test_files") and getattr(dataset, f"{key.removesuffix('_files')}_path"):
            raise ConfigError(f"dataset.{key}: does nothing beside dataset.{key.removesuffix('_files')}_path")


def written(dataset: DatasetConfig, key: str) -> list[Any]:
    """List the values that conf/dataset gives a key: in the file of this name, or where there is none, in any of its source."""
    files = _conf()
    own = [files[dataset.name]] if dataset.name in files else [v for v in files.values() if v.get("source") == dataset.source]
    return [values[key] for values in own if key in values]


@cache
def _conf() -> dict[str, dict[str, Any]]:
    loaded = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in (CONF_FOLDER / "dataset").glob("*.yaml")}
    return {name: {str(key): value for key, value in node.items()} for name, node in loaded.items() if isinstance(node, dict)}


def _own_split(dataset: DatasetConfig, place: str, split: str) -> str | None:
    """Name the key that gives a split rows of its own, so that no share of the training rows becomes it."""
    if place == "hub":
        return f"{split}_split" if getattr(dataset, f"{split}_split") else None
    if place in ("file", "folder") and getattr(dataset, f"{split}_path"):
        return f"{split}_path"
    return f"{split}_files" if place == "folder" and getattr(dataset, f"{split}_files") else None
