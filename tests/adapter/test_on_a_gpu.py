"""Every word of ``python -m src.eval`` that takes an adapter, on a GPU: for each named variant, over a base read from files.

A base of random weights would not do: it is drawn on the GPU, where pretrained weights stay on the CPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from src.adapter import adapted, fidelity, fold, harness
from src.adapter.adapted import find
from src.command.cli import compose
from src.config.schema import CONF_FOLDER
from src.data.batches import collate
from src.files.durable import unseal
from src.measure.scorer import Solo
from src.model import embedded, models
from src.record.records import RunFolder
from src.variants import quantization
from tests.adapter.test_push import Hub
from tests.conftest import SIGMAS, TINY, evaluate, rounding, written
from tests.engine.packed.conftest import MATRICES, TERMS, rows

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

ADAPTERS = sorted(path.stem for path in (CONF_FOLDER / "variant").glob("*.yaml") if path.stem not in ("full", "frozen"))
PRECISION = {name: compose([f"variant={name}"]).variant.base_precision for name in ADAPTERS}
QUICK = ["forgetting.tokens=0", "eval.generate=false", "lora.r=4", "train.lr=0.05", "pack.compile=false", "device=cuda"]
# A mean of some tens of log-losses of about 5, whose bf16 products round them by 0.03 each: as in tests/engine/packed.
LOSSES_BF16 = 1e-2
# Merged and unmerged differ in the order of their fp32 sums: W x, A x and the norm of a DoRA row have up to TERMS terms each.
LOGITS = rounding(TERMS, 3 * MATRICES + 1)
# LLM.int8() rounds each input by up to 1/254 of its row's largest, some 3 times its spread: 1/sqrt(3) of that on average.
LOGITS_INT8 = SIGMAS * math.sqrt(MATRICES) * 3 / 254 / math.sqrt(3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder with a finished run of each variant, by name its id: one pack for each precision of the base."""
    from src.sweep.events import Events
    from src.train import worker

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        network, tokenizer = models.load(compose(["model=tiny"]).model, torch.float32, torch.device("cpu"))
        for part in (network, tokenizer):
            part.save_pretrained("base")
        runs = {}
        for precision in dict.fromkeys(PRECISION.values()):
            names = [name for name in ADAPTERS if PRECISION[name] == precision]
            base = [*TINY, "model=path", f"model.path={folder / 'base'}", *QUICK]
            # LoRA+ moves B 16 times as far.
            rates = {"loraplus": ["train.lr=0.005"]}
            records = [written(compose([*base, f"variant={name}", *rates.get(name, [])])) for name in names]
            assert worker.run([record.path for record in records], Events(None)) == 0
            for name, record in zip(names, records, strict=True):
                result = record.result()
                assert result is not None and result["status"] == "ok", result
                assert result["device"].startswith("cuda")
                runs[name] = record.run_id
    yield folder, runs


@pytest.fixture
def runs(trained: tuple[Path, dict[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(trained[0])
    return trained[1]


@pytest.mark.parametrize("variant", ADAPTERS)
def test_score(runs: dict[str, str], variant: str) -> None:
    run = runs[variant]
    assert evaluate(["score", f"run={run}", "device=cuda"]) == 0
    (path,) = (Path("reports/scores") / run).glob("*.json")
    report, result = unseal(path.read_bytes()), RunFolder(run).result()
    assert result is not None and report["device"].startswith("cuda") and report["examples"] == 4
    gap = abs(report["metrics"]["loss"] - result["metrics"]["test/loss"])
    print(f"score: {variant}: log-loss differs from the run's own by {gap:.1e}")
    assert gap <= (2 if PRECISION[variant] == "int8" else 1) * LOSSES_BF16


def test_score_of_the_base(runs: dict[str, str]) -> None:
    losses = {}
    for variant in ("lora", "qdora", "rslora_8bit"):
        assert evaluate(["score", f"run={runs[variant]}", "base=true", "generate=false"]) == 0
        (path,) = (Path("reports/scores") / runs[variant]).glob("*_base-*.json")
        losses[variant] = unseal(path.read_bytes())["metrics"]["loss"]
    assert max(losses.values()) - min(losses.values()) < 0.1  # what 4 and 8 bits change of an untrained model
    result = RunFolder(runs["lora"]).result()
    assert result is not None and abs(result["metrics"]["test/loss"] - losses["lora"]) > 0.05


@pytest.mark.parametrize("variant", ADAPTERS)
def test_generate(runs: dict[str, str], variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    sampled = ["temperature=1.0", "seed=3"]
    for more in ([], [], sampled, sampled):
        capsys.readouterr()
        assert (
            evaluate(["generate", f"run={runs[variant]}", "max_new_tokens=12", "device=cuda", *more, "--", "ab cd", "x=3"]) == 0
        )
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and printed[2] == printed[3]
    assert all(text.startswith("> ab cd\n") and "\n> x=3\n" in text for text in printed)


@pytest.mark.parametrize(
    ("variant", "onto"),
    [(name, onto) for name in ADAPTERS for onto in ([""] if PRECISION[name] == "bf16" else ["original", "dequantised"])],
)
def test_merge(runs: dict[str, str], variant: str, onto: str) -> None:
    timed = variant in ("dora", "qlora", "rslora_8bit")
    out = f"merged_{variant}_{onto}"
    more = [f"onto={onto}"] if onto else []
    assert evaluate(["merge", f"run={runs[variant]}", f"out={out}", f"latency={timed}".lower(), "device=cuda", *more]) == 0
    report = unseal((Path(out) / "merge.json").read_bytes())
    measured, control = report["fidelity"], report["fp32_control"]
    print(f"merge: {variant} {onto}: largest logit gap {measured['logit_max']:.2g}, in fp32 {control['logit_max']:.2g}")
    assert report["device"].startswith("cuda") and measured["examples"] == 4
    assert all(math.isfinite(part[key]) for part in (measured, control) for key in ("logit_max", "kl", "loss_difference"))
    if onto != "original":
        assert abs(measured["loss_difference"]) < 2 * LOSSES_BF16 and measured["kl"] < 1e-2
        assert control["logit_max"] <= measured["logit_max"] or PRECISION[variant] == "int8"
    if timed:
        times = report["latency"]
        assert times["device"].startswith("cuda")
        assert all(times[name][key] > 0 for name in ("base", "unmerged", "merged") for key in ("prefill_ms", "ms_per_token"))


@pytest.mark.parametrize("variant", ADAPTERS)
def test_a_merge_in_fp32_onto_the_weights_of_training_is_the_adapter(runs: dict[str, str], variant: str) -> None:
    source = find({"run": runs[variant], "device": "cuda"})
    opened = adapted.open_source(source, exact=True)
    plain, tokenizer, numerics = adapted.load_base(source, exact=True)
    assert next(plain.parameters()).device.type == "cpu" and numerics.device.type == "cuda"
    fold.merge(opened.network, plain, source.config.variant, source.quantized)
    batch = collate(rows(8, (4, 24), (2, 6)), tokenizer.pad_token_id, numerics.device)
    unmerged = fidelity.logits_of(Solo(opened.network, numerics), batch)
    merged = fidelity.logits_of(Solo(plain.to(numerics.device), numerics), batch)
    with opened.network.disable_adapter():
        base = fidelity.logits_of(Solo(opened.network, numerics), batch)
    bound = LOGITS_INT8 if PRECISION[variant] == "int8" else LOGITS
    gap, moved = (float(((other - unmerged).norm(dim=1) / unmerged.norm(dim=1)).max()) for other in (merged, base))
    print(f"merge: {variant}, fp32: logits differ by {gap:.1e} of their norm (bound {bound:.1e}), by {moved:.1e} from the base's")
    assert gap <= bound < moved


@pytest.mark.parametrize("variant", ["lora", "dora", "qlora", "qdora_rs", "rslora_8bit", "dora_8bit"])
def test_what_is_pushed_opens_in_stock_peft(runs: dict[str, str], variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is a stand-in, which keeps the files in a folder."""
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    Hub.calls, Hub.files, Hub.error = [], {}, None
    assert evaluate(["push", f"run={runs[variant]}", "to=me/tiny", "base=me/base"]) == 0
    folder = Path(f"pushed_{variant}")
    folder.mkdir()
    for name, content in Hub.files.items():
        (folder / name).write_bytes(content)
    source = find({"run": runs[variant], "device": "cuda"})
    opened = adapted.open_source(source)
    plain, tokenizer, numerics = adapted.load_base(source)
    placed = quantization.place(plain, source.config.variant, numerics.device, numerics.compute)
    theirs = PeftModel.from_pretrained(placed, folder).eval()
    ids = torch.tensor([tokenizer("The number after 3 is").input_ids], device=numerics.device)
    with torch.no_grad(), numerics.autocast():
        logits, wanted = (network(input_ids=ids).logits.float() for network in (opened.network, theirs))
    assert torch.equal(logits, wanted)


@pytest.mark.parametrize("variant", ["lora", "qlora", "dora_8bit"])
def test_what_the_harness_is_given_is_on_the_gpu(runs: dict[str, str], variant: str) -> None:
    arguments, place = harness.model_arguments(find({"run": runs[variant], "device": "cuda"}))
    assert place == "cuda"
    if PRECISION[variant] != "bf16":
        assert {tensor.device.type for tensor in arguments["pretrained"].parameters()} == {"cuda"}


@pytest.mark.parametrize("variant", ["lora", "qlora"])
def test_the_harness(runs: dict[str, str], variant: str) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed here")
    tasks = Path("tasks")
    tasks.mkdir(exist_ok=True)
    data = [{"q": f"The number after {n} is", "a": f" {n + 1}"} for n in range(6)]
    (tasks / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in data))
    (tasks / "mini.yaml").write_text(
        f"task: mini\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {(tasks / 'rows.json').absolute()}\n"
        "test_split: test\noutput_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    assert evaluate(["harness", f"run={runs[variant]}", "tasks=mini", "include=tasks", "limit=4", "device=cuda"]) == 0


@pytest.mark.gpu_long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", ["lora", "qlora", "dora_8bit"])
def test_the_real_model(command: Any, variant: str) -> None:
    """SmolLM2 as a user trains and merges it, all layers of speed on."""
    try:
        embedded.gguf_file()
    except Exception as error:
        pytest.skip(f"no embedded model: {error}")
    settings = ["train.steps=20", "train.batch_size=8", "eval.val_examples=8", "eval.test_examples=32", "forgetting.tokens=0"]
    done = command("src.train", f"variant={variant}", "lora.r=8", "tracking=disabled", "device=cuda", *settings, timeout=500)
    assert done.returncode == 0, done.stderr
    (run,) = (path.name for path in Path("runs").glob("*") if (path / "result.json").exists())
    more = ["onto=dequantised"] if variant != "lora" else []
    done = command("src.eval", "merge", f"run={run}", "out=merged", "device=cuda", *more, timeout=500)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    report: dict[str, Any] = unseal(Path("merged/merge.json").read_bytes())
    assert report["fidelity"]["kl"] < 0.02 and abs(report["fidelity"]["loss_difference"]) < 0.05
