"""Makes the records beside it, with the code of a checkout: ``cd CHECKOUT && python PATH/make.py``. README.md says with which.

Everything is trained and read by the commands; what they say is kept in expected/.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CODE = Path.cwd()
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(CODE),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
COMMANDS = json.loads((HERE / "commands.json").read_text(encoding="utf-8"))
STOP_AT = 14  # lines of the log
BASE = (
    "model=tiny model.shape.hidden_size=32 model.shape.intermediate_size=64 variant=full train.lr=5e-3 train.steps=120"
    " train.batch_size=16 eval.every=120 eval.val_examples=3 eval.generate=false forgetting.tokens=0 dataset=jsonl"
    " dataset.path=rows.jsonl dataset.test_share=0.2 tracking=disabled"
)


def python(*words: str, cwd: Path = HERE) -> str:
    done = subprocess.run([sys.executable, "-m", *words], cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE)
    print(done.stdout, flush=True)
    return done.stdout


def words(line: str) -> list[str]:
    """The words of a training command; its own come after those of all, and one of its own takes the place of theirs."""
    given = line.split()
    keys = {word.partition("=")[0] for word in given}
    return [*(word for word in given if word == "-m"), *(w for w in COMMANDS["of all"] if w.partition("=")[0] not in keys),
            *(word for word in given if word != "-m")]  # fmt: skip


def base() -> None:
    """A model of two small layers that knows the rows a little, so that its answers are words and its choices are clear."""
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(HERE / "rows.jsonl", folder)
        python("src.train", *BASE.split(), cwd=Path(folder))
        (model,) = Path(folder).glob("runs/*/model")
        (HERE / "base").mkdir()
        for name in ("config.json", "generation_config.json"):
            shutil.copy(model / name, HERE / "base")
        # All that AutoTokenizer needs to know of the byte tokenizer, which has no files.
        (HERE / "base" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}\n', encoding="utf-8")
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(model / "model.safetensors").items()}
        save_file(tensors, HERE / "base" / "model.safetensors", {"format": "pt"})


def interrupted() -> None:
    before = set((HERE / "runs").iterdir())
    process = subprocess.Popen([sys.executable, "-m", "src.train", *words(COMMANDS["interrupted"])], cwd=HERE, env=ENVIRONMENT)
    while process.poll() is None:
        logs = [run / "metrics.jsonl" for run in set((HERE / "runs").iterdir()) - before]
        if any(log.exists() and log.read_bytes().count(b"\n") >= STOP_AT for log in logs):
            process.terminate()
            break
        time.sleep(0.001)
    assert process.wait() == 143


def dump(name: str, value: Any) -> None:
    (HERE / "expected" / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def expected() -> None:
    """What this code says of these records, asked in a copy of them."""
    (HERE / "expected").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in ("base", "runs"):
            shutil.copytree(HERE / each, folder / each)
        shutil.copy(HERE / "rows.jsonl", folder)
        done = subprocess.run(
            [sys.executable, HERE / "in_one_process.py"], cwd=folder, env=ENVIRONMENT, text=True, check=True,
            input=json.dumps(list(COMMANDS["asked"].values())), stdout=subprocess.PIPE,
        )  # fmt: skip
        said = dict(zip(COMMANDS["asked"], json.loads(done.stdout), strict=True))
        assert not any(code for code, _, _ in said.values()), said
        (HERE / "expected" / "table.txt").write_text(said["table"][1], encoding="utf-8")
        for file in ("comparison.csv", "comparison.md", "comparison.tex", "rates.csv"):
            shutil.copy(folder / "reports" / "before" / file, HERE / "expected")
        scores = {"base" if "_base-" in path.name else "adapter": json.loads(path.read_text())["metrics"]
                  for path in folder.glob("reports/scores/*/*.json")}  # fmt: skip
        merged = json.loads((folder / "merged" / "merge.json").read_text())
        dump("answers.json", {
            "generate": said["generate"][1], "score": scores,
            "merge": {
                key: merged[key]
                for key in ("base", "base_precision", "fidelity", "fp32_control", "onto", "saved_as", "variant")
            },
        })  # fmt: skip
        runs = [path.parent for path in folder.glob("runs/*/checkpoints")]
        python("src.train", *words(COMMANDS["interrupted"]), cwd=folder)
        gone_on = {run.name: (run / "metrics.jsonl").read_text() for run in runs}
        dump(
            "resumed.json",
            {name: json.loads((folder / "runs" / name / "result.json").read_text())["metrics"] for name in gone_on},
        )
        # As if nothing had been interrupted.
        shutil.rmtree(folder / "runs")
        python("src.train", *words(COMMANDS["interrupted"]), cwd=folder)
        for name, text in gone_on.items():
            assert text == (folder / "runs" / name / "metrics.jsonl").read_text()
            (HERE / "expected" / f"resumed.{name}.jsonl").write_text(text, encoding="utf-8")


def ids() -> None:
    sys.path.insert(0, str(CODE))
    from src.cli import compose
    from src.records import run_id

    path = HERE / "ids.json"
    lines = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({line: run_id(compose(line.split())) for line in lines}, indent=0) + "\n", encoding="utf-8")


def main() -> None:
    for name in ("runs", "base", "expected", "reports"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    base()
    for line in COMMANDS["finished"].values():
        python("src.train", *words(line))
    interrupted()
    for lock in (HERE / "runs").rglob(".lock"):
        lock.unlink()
    expected()
    ids()


if __name__ == "__main__":
    main()
