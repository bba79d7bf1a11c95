"""``python -m src.eval push``: upload a run's adapter to the Hugging Face hub. Nothing else in the product uploads."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..command import words
from ..command.words import Key
from ..files.errors import ConfigError
from . import adapted
from .adapted import Source
from .settings import SETTINGS, WEIGHTS

USAGE = """\
usage: python -m src.eval push run=ID to=OWNER/NAME [private=true] [base=OWNER/NAME]

Uploads adapter_config.json, adapter_model.safetensors and README.md of a run that is ok to the Hugging Face hub, and
nothing else. The token comes from HF_TOKEN or `hf auth login`, never from the command line.

  run=ID           a finished run in runs/; its record is verified first
  to=OWNER/NAME    the repository; it is created if it does not exist
  private=BOOL     create it as a private repository (default: true)
  base=OWNER/NAME  the hub id of the base, for a run whose base was a folder; it is written into the uploaded files
"""
HUB_NAME = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
KEYS = {
    "run": Key(words.run_id, "0eed806141"),
    "to": Key(words.matching(HUB_NAME, "a repository's name"), "OWNER/NAME"),
    "private": Key(words.switch, "true"),
    "base": Key(words.matching(HUB_NAME, "a repository's name"), "OWNER/NAME"),
}
CARD = "README.md"
FILES = (SETTINGS, WEIGHTS, CARD)


def run(arguments: list[str]) -> None:
    """Do what the words ask for."""
    values, _ = words.read(arguments, KEYS)
    for key in ("run", "to"):
        if key not in values:
            raise ConfigError(f"{key}: is needed, such as {key}={KEYS[key].example}")
    source = adapted.find({"run": values["run"]})
    refuse_private(source, values.get("base"))
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise ConfigError("push: no token; set HF_TOKEN or run hf auth login")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(source, folder, values.get("base"))
        for path in sorted(folder.iterdir()):
            print(f"{path.name}  {path.stat().st_size:,} bytes")
        print(upload(folder, values["to"], values.get("private", True)))


def refuse_private(source: Source, base: str | None) -> None:
    """Raise ConfigError for a run without an adapter, and where the adapter names a folder of this machine as its base."""
    if source.adapter is None:
        raise ConfigError(f"{source.name}: variant={source.config.variant.name} has no adapter to push")
    model = source.config.model
    if base is None and model.weights == "pretrained" and model.source == "path":
        raise ConfigError(f"{source.name}: its base is a folder of this machine ({model.path}); base=OWNER/NAME says which it is")
    if base is not None and model.source != "path":
        raise ConfigError(f"base={base}: the record says what the base is; base= is for a run on a folder")


def prepare(source: Source, folder: Path, base: str | None) -> None:
    """Copy what is uploaded into ``folder``, so that the record stays as it is."""
    assert source.adapter is not None
    for name in FILES:
        if (source.adapter / name).is_file():
            shutil.copyfile(source.adapter / name, folder / name)
    if base is not None:
        settings = source.settings | {"base_model_name_or_path": base}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if base is not None or not is_own_card(folder / CARD):
        from . import card

        result = source.record.result() if source.record else None
        assert result is not None
        text = card.card(source.config, result, base=base)
        (folder / CARD).write_text(text, encoding="utf-8")


def is_own_card(path: Path) -> bool:
    """Tell whether lora-assay wrote a card: early runs have PEFT's template, which names folders of this machine."""
    return path.is_file() and "lora-assay" in path.read_text(encoding="utf-8", errors="replace")


def upload(folder: Path, to: str, private: bool) -> str:
    """Upload the folder and return its address.

    Raises:
        ConfigError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        address = api.create_repo(to, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=to, folder_path=folder, allow_patterns=list(FILES), commit_message="Adapter trained with lora-assay"
        )
    except Exception as error:  # of the hub's client, of its HTTP library, of the network
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"to={to}: the hub refused: {first}") from error
    return str(address)
