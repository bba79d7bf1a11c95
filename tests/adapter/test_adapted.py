"""A trained adapter opens strictly, over the base it was trained on, or is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from src.adapter import adapted
from src.adapter.adapted import SETTINGS, WEIGHTS, find, open_source
from src.files.errors import ConfigError
from src.model import models
from src.record.records import RunFolder
from tests.conftest import Run, evaluate

QUICK = ["forgetting.tokens=0", "eval.generate=false", "lora.r=4", "train.lr=0.05"]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copied(run: Run, folder: Path) -> Path:
    """A LoRA run's adapter, copied to where it may be changed."""
    record, _ = run(*QUICK)
    shutil.copytree(record.adapter, folder / "mine")
    return folder / "mine"


def opened(**given: Any) -> Any:
    return open_source(find(given))


def message(**given: Any) -> str:
    with pytest.raises(ConfigError) as error:
        opened(**given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("variant", ["lora", "dora", "qlora", "rslora_8bit"])
def test_a_run_opens_as_it_was_trained_and_as_stock_peft_opens_it(run: Run, variant: str) -> None:
    record, _ = run(*QUICK, f"variant={variant}")
    source = find({"run": record.run_id})
    opened_here = open_source(source)
    plain, tokenizer, numerics = adapted.load_base(source)
    from src.variants import quantization

    placed = quantization.place(plain, source.config.variant, numerics.device, numerics.compute)
    theirs = PeftModel.from_pretrained(placed, record.adapter).eval()
    ids = torch.tensor([tokenizer("The number after 3 is").input_ids])
    with torch.no_grad(), numerics.autocast():
        logits, wanted = (model(input_ids=ids).logits.float() for model in (opened_here.network, theirs))
        base = opened_here.network.get_base_model()
        with opened_here.network.disable_adapter():
            untrained = base(input_ids=ids).logits.float()
    assert torch.equal(logits, wanted)
    assert (logits - untrained).abs().max() > 0.01
    again = theirs.load_adapter(record.adapter, "again")
    assert (again.missing_keys, again.unexpected_keys) == ([], [])


def change(folder: Path, edit: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.pop(FIRST), f"lacks 1 of 28 tensors, such as {FIRST}"),
        (lambda t: t.update({"extra.lora_A.weight": torch.zeros(2)}), "1 of 28 tensors, such as extra.lora_A.weight"),
        (lambda t: t.update({FIRST.replace("base_model.model.", ""): t.pop(FIRST)}), f"lacks 1 of 28 tensors, such as {FIRST}"),
        (lambda t: t.update({FIRST: torch.zeros(4, 127)}), f"{FIRST} has the shape [4, 127] where [4, 128] is needed"),
        (lambda t: t[FIRST].fill_(float("nan")), f"{FIRST} holds what is no finite number"),
        (lambda t: t.update({FIRST: torch.zeros(4, 128, dtype=torch.int8)}), "holds what is no finite number"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(copied: Path, edit: Callable[[Tensors], Any], says: str) -> None:
    change(copied, edit)
    assert says in message(adapter=str(copied), model="tiny")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "IA3"}, "is not a LoRA adapter's"),
        ({"r": "8"}, "r needs a number"),
        ({"r": 8}, "has the shape [4, 128] where [8, 128] is needed"),
        ({"use_dora": True}, "lacks 14 of 42 tensors"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa changes the base too"),
        ({"target_modules": ".*(a+)+$"}, "target_modules: the pattern '.*(a+)+$' could take too long to match"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern needs numbers by module name; a pattern is not read"),
    ],
)
def test_settings_that_would_load_as_something_else_are_refused(copied: Path, settings: dict[str, Any], says: str) -> None:
    path = copied / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert says in message(adapter=str(copied), model="tiny")


def test_files_that_are_none_are_refused(copied: Path, folder: Path) -> None:
    assert "no such file" in message(adapter="nowhere")
    assert "names no base; model= takes a folder" in message(adapter=str(copied))
    assert "did you mean tiny?" in message(adapter=str(copied), model="tinny")
    (copied / WEIGHTS).write_bytes(b"\x08\0\0\0\0\0\0\0 not json")
    assert "cannot be read as safetensors" in message(adapter=str(copied), model="tiny")
    (copied / WEIGHTS).rename(copied / "adapter_model.bin")
    assert "a pickle (adapter_model.bin) is never loaded" in message(adapter=str(copied), model="tiny")
    (copied / SETTINGS).write_text("{")
    assert "is not JSON" in message(adapter=str(copied), model="tiny")


def test_a_run_that_is_not_whole_is_refused(run: Run) -> None:
    record, _ = run(*QUICK)
    assert "needs one of run=ID and adapter=FOLDER" in message()
    assert "no finished run" in message(run="0123456789")
    assert "precision: the run's record says it" in message(run=record.run_id, precision="nf4")
    weights = record.adapter / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert "its record is damaged: adapter/adapter_model.safetensors holds other bytes" in message(run=record.run_id)


def test_a_base_that_is_no_longer_the_same_is_refused(run: Run, folder: Path) -> None:
    from src.command.cli import compose

    network, tokenizer = models.load(compose(["model=tiny"]).model, torch.float32, torch.device("cpu"))
    network.save_pretrained("base")
    tokenizer.save_pretrained("base")
    record, _ = run(*QUICK, "model=path", "model.path=base")
    assert opened(run=record.run_id)
    with torch.no_grad():
        network.model.embed_tokens.weight[5] += 1
    network.save_pretrained("base")
    assert "holds other weights than it was trained on" in message(run=record.run_id)


def test_controls_open_too(run: Run) -> None:
    for variant in ("frozen", "full"):
        record, result = run(*QUICK, f"variant={variant}")
        assert result["status"] == "ok"
        network = opened(run=record.run_id).network
        moved = not torch.equal(
            network.model.embed_tokens.weight, adapted.load_base(find({"run": record.run_id}))[0].model.embed_tokens.weight
        )
        assert moved == (variant == "full")


def test_words_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["generate", "run=0123456789"], "needs a prompt"),
        (["generate", "run=zzz", "hi"], "run=zzz: needs the id of a run, such as run=0eed806141"),
        (["generate", "run=0123456789", "temprature=1", "hi"], "did you mean temperature?"),
        (["generate", "run=0123456789", "seed=1", "hi"], "seed: greedy answers need none"),
        (["generate", "run=0123456789", "hi", "chat=yes"], "needs true or false"),
        (["merge", "run=0123456789"], "out: needs the folder to write"),
        (["merge", "run=0123456789", "out=a", "out=b"], "out: given twice"),
        (["merge", "runn"], "'runn': no such key (did you mean run?)"),
        (["push", "run=0123456789"], "to: is needed"),
        (["push", "run=0123456789", "to=../x"], "needs a repository's name"),
        (["harness", "run=0123456789"], "tasks: is needed"),
        (["push", "run=0123456789", "token=hf_" + "a" * 30], "looks like a Hugging Face token"),
    ):
        assert evaluate(words) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert says in captured.err and "aaaa" not in captured.err
    assert evaluate(["merge", "--help"]) == 0
    assert "onto=NAME" in capsys.readouterr().out


def test_nothing_of_a_record_is_changed_by_opening_it(run: Run) -> None:
    record, result = run(*QUICK)
    opened(run=record.run_id)
    assert RunFolder(record.run_id).damage(result) == []
