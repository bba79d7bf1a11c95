"""Only three files of a record leave this machine, to the repository that the user named, by the hub's own client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from src.command.cli import compose
from src.model import models
from tests.conftest import Run, evaluate

QUICK = ["forgetting.tokens=0", "eval.generate=false", "lora.r=4"]
TOKEN = "hf_" + "abcdefgh12" * 3


class Hub:
    """Stands in for ``HfApi`` and keeps what it was asked for."""

    calls: list[tuple[str, Any]]
    files: dict[str, bytes]
    error: Exception | None

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.error is not None:
            raise self.error
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, folder_path: Path, **options: Any) -> None:
        self.calls.append(("upload_folder", options))
        Hub.files = {path.name: path.read_bytes() for path in Path(folder_path).rglob("*") if path.is_file()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.calls, Hub.files, Hub.error = [], {}, None
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    return Hub


def test_what_is_uploaded_is_the_adapter_and_its_card(run: Run, hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = run(*QUICK, "variant=dora")
    (record.adapter / "notes.txt").write_text("mine")  # no part of the record, and not uploaded
    capsys.readouterr()
    assert evaluate(["push", f"run={record.run_id}", "to=me/my-adapter"]) == 0
    assert hub.calls[0] == ("create_repo", {"repo_id": "me/my-adapter", "private": True, "exist_ok": True})
    assert hub.calls[1][1]["repo_id"] == "me/my-adapter"
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(hub.calls[1][1]["allow_patterns"]) == sorted(hub.files) == names
    assert all(hub.files[name] == (record.adapter / name).read_bytes() for name in names)
    printed = capsys.readouterr()
    assert printed.out.endswith("https://huggingface.co/me/my-adapter\n") and TOKEN not in printed.out + printed.err


def test_the_folder_of_a_base_is_not_told(run: Run, folder: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    network, tokenizer = models.load(compose(["model=tiny"]).model, torch.float32, torch.device("cpu"))
    base = folder / "private" / "base"
    for part in (network, tokenizer):
        part.save_pretrained(base)
    record, _ = run(*QUICK, "model=path", f"model.path={base}")
    before = (record.adapter / "adapter_config.json").read_bytes()
    capsys.readouterr()
    assert evaluate(["push", f"run={record.run_id}", "to=me/x"]) == 2
    assert "its base is a folder of this machine" in capsys.readouterr().err and hub.calls == []
    assert evaluate(["push", f"run={record.run_id}", "to=me/x", "base=org/base", "private=false"]) == 0
    assert hub.calls[0][1]["private"] is False
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    assert all(b"private" not in content for content in hub.files.values())
    assert b'base_model: "org/base"' in hub.files["README.md"]
    assert (record.adapter / "adapter_config.json").read_bytes() == before


def test_what_is_not_pushed(
    run: Run, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (good, _), (frozen, _) = run(*QUICK), run(*QUICK, "variant=frozen")
    diverged, result = run(*QUICK, "seed=3")
    diverged.write_result({**result, "status": "diverged", "reason": "loss was not finite at step 2"})

    def refused(record: Any, *words: str) -> str:
        capsys.readouterr()
        assert evaluate(["push", f"run={record.run_id}", "to=me/x", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and TOKEN not in error
        return error

    assert "ended as diverged" in refused(diverged)
    assert "variant=frozen has no adapter to push" in refused(frozen)
    assert "the record says what the base is" in refused(good, "base=org/base")
    assert hub.calls == []
    hub.error = RuntimeError(f"401 Client Error for {TOKEN}\nmore")
    assert "to=me/x: the hub refused: 401 Client Error for [redacted]" in refused(good)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "push: no token; set HF_TOKEN or run hf auth login" in refused(good)
    card = good.adapter / "README.md"
    card.write_text(card.read_text() + "more\n")
    assert "its record is damaged: adapter/README.md has" in refused(good)


def test_an_older_record_without_our_card_gets_one(run: Run, hub: type[Hub]) -> None:
    record, result = run(*QUICK)
    (record.adapter / "README.md").write_text("base_model: /home/me/secret-folder\n# Model Card for Model ID")  # PEFT's template
    record.write_result({key: value for key, value in result.items() if key != "files"})
    assert evaluate(["push", f"run={record.run_id}", "to=me/x"]) == 0
    assert b"secret-folder" not in hub.files["README.md"] and record.run_id.encode() in hub.files["README.md"]
