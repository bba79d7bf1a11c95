"""No config, model folder or record brings code that runs: hostile commands and YAML files, remote code, pickles."""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from src.command import admission
from src.command.cli import compose
from src.compare.frame import gather, run_ids
from src.compare.logs import curves
from src.config.schema import CONF_FOLDER, ModelConfig
from src.files.errors import ConfigError
from src.model import models
from src.record.records import RUNS, run_id
from tests.conftest import TINY, Run
from tests.faults.security.conftest import Refused

# What would be refused in any case, so that an attack that is let in trains nothing.
END = ("model=tiny", "dataset=jsonl", "dataset.path=nosuch.jsonl")
CANNOT = "cannot be set; of Hydra's own settings only"
WORDS = [
    (["hydra.launcher._target_=os.mkdir", "+hydra.launcher.path=executed"], CANNOT),
    (["++hydra.sweeper={_target_:os.mkdir,path:executed}"], CANNOT),
    (["+hydra.callbacks={x:{_target_:os.system,command:'mkdir executed'}}"], CANNOT),
    (["+hydra.callbacks={x:{_target_:pandas.read_pickle,filepath_or_buffer:evil.pkl}}"], CANNOT),
    (["+hydra.callbacks={x:{_target_:torch.load,f:evil.pkl,weights_only:false}}"], CANNOT),
    (["+hydra.callbacks={x:{_target_:functools.partial,_args_:[os.mkdir,executed]}}"], CANNOT),
    (["hydra/launcher=basic"], CANNOT),
    (["hydra/job_logging=default"], CANNOT),
    (["++hydra.job_logging={version:1,handlers:{x:{class:os.mkdir,path:executed}}}"], CANNOT),
    (["--help", "++hydra.hydra_logging={version:1,handlers:{x:{class:os.mkdir,path:executed}}}"], CANNOT),
    (["hydra.searchpath=[pkg://evil]"], CANNOT),
    (["+hydra={searchpath:[pkg://evil]}"], CANNOT),
    (["--cfg=job", "hydra.searchpath=[pkg://evil]"], CANNOT),
    (["-m", "seed=0,1", "hydra.searchpath=[pkg://evil]"], CANNOT),
    (["+hydra.job.env_set={LD_PRELOAD:evil.so}"], CANNOT),
    (["hydra.run.dir=elsewhere"], CANNOT),
    (["model@hydra.callbacks.x=tiny"], CANNOT),
    (["~hydra.launcher"], CANNOT),
    (["--experimental-rerun", "evil.pkl"], "loads a pickle"),
    (["--exp=evil.pkl"], "loads a pickle"),
    (["--config-name=x", "--config-dir=conf"], "--config-name: is not accepted"),
    (["--config-path=evil"], "--config-path: is not accepted"),
    (["+lora._target_=os.system"], "no such key"),
    (["lora={_target_:os.system}"], "no such key"),
    (["lora.target_modules={_target_:os.system,command:x}"], "lora.target_modules"),
    (["tracking.project=${oc.env:HOME}"], "nothing else is expanded"),
    (["data_seed=${oc.decode:1}"], "nothing else is expanded"),
]
# experiment/x.yaml of a folder given with --config-dir, and other files there.
FILES: list[tuple[str, dict[str, str], str]] = [
    ("hydra: {callbacks: {x: {_target_: pandas.read_pickle, filepath_or_buffer: evil.pkl}}}", {}, CANNOT),
    ("hydra: {callbacks: {x: [[{_target_: os.mkdir, path: executed}]]}}", {}, CANNOT),
    ("hydra: {job_logging: {version: 1, handlers: {x: {(): os.mkdir, path: executed}}}}", {}, CANNOT),
    ("hydra: {mode: MULTIRUN, sweeper: {params: {hydra.searchpath: '[pkg://evil]'}}}", {}, CANNOT),
    ("hydra: {mode: MULTIRUN, sweeper: {params: {tracking.project: '${oc.env:HOME}'}}}", {}, "nothing else is expanded"),
    ("defaults: [{override /variant: '${oc.env:HOME}'}]", {}, "nothing else is expanded"),
    ("hydra: {overrides: {hydra: ['hydra.searchpath=[pkg://evil]']}}", {}, CANNOT),
    ("hydra: {job: {env_copy: [HOME]}}", {}, CANNOT),
    (
        "defaults: [{override /hydra/env: evil}]",
        {"hydra/env/evil.yaml": "x: {_target_: os.mkdir, path: executed}"},
        "is not read",
    ),
    ("seed: 1", {"schema.yaml": "hydra: {callbacks: {x: {_target_: os.mkdir, path: executed}}}"}, "is not read"),
    ("lora: {_target_: os.mkdir, path: executed}", {}, "_target_"),
]


@pytest.mark.usefixtures("evil")
def test_a_command_names_no_code(refused: Refused, marker: Path, figure: Callable[[str, str], None]) -> None:
    for arguments, says in WORDS:
        assert says in refused(*arguments, *END), arguments
        assert not marker.exists(), arguments
    figure("Attacks", f"code on the command line: 0 of {len(WORDS)} executed")


def with_files(folder: Path, experiment: str, others: dict[str, str]) -> list[str]:
    """The options that choose this experiment."""
    own = folder / "own"
    for name, text in {"experiment/x.yaml": f"# @package _global_\n{experiment}\n", **others}.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(text)
    return [f"--config-dir={own}"]


@pytest.mark.usefixtures("evil")
def test_a_yaml_names_no_code(refused: Refused, marker: Path, folder: Path, figure: Callable[[str, str], None]) -> None:
    for number, (experiment, others, says) in enumerate(FILES):
        options = with_files(folder, experiment, others)
        assert says in refused(*options, "experiment=x", *END), experiment
        if number < 2:
            refused("-m", *options, "experiment=demo,x", *END)  # a job's settings of Hydra are refused, or not looked at
        assert not marker.exists(), experiment
        shutil.rmtree(folder / "own")
    figure("Attacks", f"code in an experiment's YAML: 0 of {len(FILES)} executed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("evil", "own_secrets")
@pytest.mark.parametrize("word", [
    "hydra.searchpath=[pkg://evil]", "+hydra.callbacks={x:{_target_:pandas.read_pickle,filepath_or_buffer:evil.pkl}}",
])  # fmt: skip
def test_without_the_door_these_attacks_work(
    command_in_process: Callable[..., int], marker: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(admission, "refuse_override", lambda _: None)
    monkeypatch.setattr(admission, "refuse_command", lambda _: None)
    command_in_process(word, *END)
    assert marker.exists()


def test_what_a_user_needs_of_hydra_is_let_in(refused: Refused, folder: Path) -> None:
    own = "hydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1', lora.r: '4,0'}}}"
    assert "lora.r=0: needs" in refused(*with_files(folder, own, {}), "experiment=x", "model=tiny")
    assert "lora.r=0: needs" in refused("experiment=demo", "lora.r=4,0")
    assert "lora.r=0: needs" in refused("hydra.mode=MULTIRUN", "lora.r=4,0")


CODE = "import os\nos.mkdir({marker!r})\n"


@pytest.fixture
def model_folder(folder: Path) -> Path:
    """A model that loads: two small layers and a tokenizer."""
    from transformers import AutoModelForCausalLM, ByT5Tokenizer, LlamaConfig

    place = folder / "model"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=384, **sizes)).save_pretrained(place)
    ByT5Tokenizer().save_pretrained(place)
    return place


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(place: Path) -> object:
    import torch

    return models.load(ModelConfig(name="path", source="path", path=str(place)), torch.float32, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore")
def test_code_in_a_model_folder_is_refused_and_never_run(
    model_folder: Path, refused: Refused, marker: Path, figure: Callable[[str, str], None]
) -> None:
    load(model_folder)
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py"):
        (model_folder / name).write_text(CODE.format(marker=str(marker)))
    tokenizer, config = model_folder / "tokenizer_config.json", model_folder / "config.json"
    changes: list[tuple[Path, dict[str, Any]]] = [
        (tokenizer, {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}),
        (config, {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}, "architectures": ["X"]}),
        (config, {"model_type": "x", "auto_map": {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}}),
    ]
    for path, values in changes:
        kept = path.read_text()
        change(path, **values)
        assert f"{path.name} names code of its own" in refused("model=path", f"model.path={model_folder}")
        with contextlib.suppress(ValueError):  # the classes that transformers has are taken, where it has them
            load(model_folder)
        assert not marker.exists()
        path.write_text(kept)
    change(config, attn_implementation="evil/kernel")
    assert "names a kernel to download" in refused("model=path", f"model.path={model_folder}")
    figure("Attacks", f"code in a model folder: 0 of {len(changes) + 1} executed")


def test_a_pickled_model_is_refused_and_never_opened(model_folder: Path, refused: Refused, evil: Path, marker: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(evil.read_bytes())
    assert "a pickle (pytorch_model.bin) is never loaded" in refused("model=path", f"model.path={model_folder}")
    with opened() as paths, pytest.raises(ConfigError, match=r"model\.safetensors"):
        load(model_folder)
    assert not [path for path in paths if path.endswith(".bin")] and not marker.exists()


OPENED: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event == "open":
        OPENED.append(str(arguments[0]))
    if OPENED is not None and event == "pickle.find_class":
        OPENED.append(f"pickle of {arguments}")


sys.addaudithook(_audit)  # it stays for as long as the process does


@contextlib.contextmanager
def opened() -> Iterator[list[str]]:
    """The files that Python opens meanwhile."""
    global OPENED
    OPENED = paths = []
    try:
        yield paths
    finally:
        OPENED = None


PICKLES = ("optimizer.pt", "checkpoint.pt", "training_args.bin", "pytorch_model.bin", "adapter/adapter_model.bin", "x.pkl")
KINDS = {".json", ".jsonl", ".yaml", ".safetensors", ".md", ".txt"}


def test_pickles_in_a_runs_folder_are_never_opened(
    run: Run, evil: Path, marker: Path, figure: Callable[[str, str], None]
) -> None:
    place = RUNS / run_id(compose(TINY))
    for name in PICKLES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(evil.read_bytes())
    with opened() as paths:
        record, result = run()
        assert gather(run_ids()).rows and curves(run_ids()).frame is not None
    assert result["status"] == "ok" and record.path == place
    assert [path for path in paths if path.endswith("result.json")], "the hook sees what is opened"
    assert not [path for path in paths if path.endswith((".pt", ".bin", ".pkl"))] and not marker.exists()
    for name in PICKLES:
        (place / name).unlink(missing_ok=True)
    assert {path.suffix for path in RUNS.rglob("*") if path.is_file()} <= KINDS
    figure("Attacks", f"{len(PICKLES)} pickles in a run's folder: 0 opened; a record holds {', '.join(sorted(KINDS))} only")


SOURCES = [*(CONF_FOLDER.parent / "src").rglob("*.py"), *(CONF_FOLDER.parent / "hydra_plugins").rglob("*.py")]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "code", "pty"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "pd.read_pickle", "pandas.read_pickle", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
KEYWORDS = {"trust_remote_code": True, "shell": True, "allow_pickle": True, "weights_only": False}


def dangers(tree: ast.AST) -> list[str]:
    """List the dangerous calls and imports of a source, each with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        found += [f"{node.lineno}: {name}"] if name in CALLS else []
        found += [f"{node.lineno}: {word}={value}" for word, value in KEYWORDS.items() if given.get(word) is value]
        unpacked = {ast.unparse(word.value) for word in node.keywords if word.arg is None}
        if name.endswith(".from_pretrained") and given.get("trust_remote_code") is not False and "NO_CODE" not in unpacked:
            found.append(f"{node.lineno}: {name} does not say trust_remote_code=False")
    return found


def test_the_source_loads_no_pickle_and_runs_no_text() -> None:
    assert len(SOURCES) > 50
    assert [f"{path.name}:{danger}" for path in SOURCES for danger in dangers(ast.parse(path.read_text()))] == []
    assert models.NO_CODE == {"trust_remote_code": False}


@pytest.mark.parametrize("text", [
    "import pickle", "from joblib import load", "torch.load(x)", "eval(x)", "yaml.load(x, Loader=y)", "run(x, shell=True)",
    "AutoModel.from_pretrained(x)", "AutoModel.from_pretrained(x, trust_remote_code=True)", "np.load(x, allow_pickle=True)",
])  # fmt: skip
def test_such_a_source_would_be_found(text: str) -> None:
    assert dangers(ast.parse(text))
