"""A key of this machine reaches no record, log, mirror or page, and is refused where a config or a command line has one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.command.cli import compose
from src.files import credentials
from src.files.credentials import REDACTED, in_arguments, redact, secret_kind
from src.files.errors import ConfigError
from tests.conftest import ENVIRONMENT, TINY, TrainPack, evaluate
from tests.faults.security.conftest import Refused

DIGITS = "0123456789abcdef" * 4
SECRETS = {
    "hub": "hf_" + "Ab3" * 11 + "Z",
    "hub, short": "hf_" + "aB" * 10,
    "W&B, old": DIGITS[:40],
    "W&B": "wandb_v1_" + "aB3_" * 10,
    "API": "sk-proj-" + "aB3-" * 8,
    "GitHub": "ghp_" + "aB3" * 12,
    "GitHub, fine": "github_pat_" + "aB3_" * 10,
    "AWS": "AKIA" + "ABCDEFGH23456789",
    "GitLab": "glpat-" + "aB3_" * 5,
    "Slack": "xoxb-123456789012-abcdefghijkl",
    "URL": "https://someone:hunter2@example.org/x",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
}
INNOCENT = [
    *("HuggingFaceTB/SmolLM2-135M-Instruct", "a/snapshots/31b70e2e869a7173562077fd711b654946d38674/model", "sk-learn"),
    *("risk-averse-fine-tuning-of-2-models", "task-based-evaluation-of-x", "https://huggingface.co/datasets/x@y", "lr=1e-3"),
    *(
        "git@github.com:x/y.git",
        "half_of_the_rows_of_it",
        "ghost_of_a_chance_with_a_long_name_of_words",
        "user@example.org: x://y",
    ),
    *("x" * 1000, DIGITS[:10], DIGITS),
]
MACHINE = {"WANDB_API_KEY": "fedcba9876543210" * 2 + "fedcba98", "MY_SECRET": "Tr0ub4dor&3-'\"-Zebra"}
SETTINGS = {
    "SORT_KEY": "learning_rate",
    "GIT_AUTHOR_NAME": "Grace Hopper 1906",
    "API_KEY": "short",
    "MAX_TOKENS": "123456789012345",
}
OWN = [*MACHINE.values(), "NetrcPassword12345", "hf_" + "Q9w" * 11]  # all keys that this machine has


@pytest.fixture(autouse=True)
def keys(own_secrets: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's keys: two in the environment, one in netrc, one in the hub's file; and settings that are none."""
    for name, value in {**MACHINE, **SETTINGS, "SSH_AUTH_SOCK": str(own_secrets)}.items():
        monkeypatch.setenv(name, value)
    (own_secrets / "netrc").write_text(f"machine api.wandb.ai login user password {OWN[2]}\n")
    (own_secrets / "netrc").chmod(0o600)
    (own_secrets / "token").write_text(f"{OWN[3]}\n")
    credentials.known.cache_clear()
    yield
    credentials.known.cache_clear()


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_seen_wherever_it_stands(kind: str) -> None:
    secret = SECRETS[kind]
    assert secret_kind(secret) and secret_kind(f"[a,{secret}]") and secret_kind(f"'{secret}'")
    for word in (f"tracking.project={secret}", secret, f"--x={secret}", f"{secret}=1"):
        line = in_arguments(["seed=1", word])
        assert line and secret not in line and "\n" not in line
    with pytest.raises(ConfigError) as caught:
        compose([f'tracking.project="{secret}"'])
    assert secret not in str(caught.value)
    if kind != "W&B, old":
        text = redact(f'{{"reason": "401 for {secret}, twice {secret}."}}')
        assert REDACTED in text and "hunter2" not in text and (kind == "URL" or secret not in text)
        assert text.startswith('{"reason": "401 for ') and text.endswith('."}')


def test_this_machines_keys_are_known_in_each_form() -> None:
    for secret in OWN:
        assert secret_kind(f"a {secret}") and secret not in redact(f"x {secret} y")
    assert "Zebra" not in redact('{"reason": "Tr0ub4dor&3-\'\\"-Zebra"}'), "as JSON writes it"
    assert "Zebra" not in redact("http://x/?q=Tr0ub4dor%263-%27%22-Zebra"), "as a URL writes it"
    assert redact("x" * 500 + OWN[0] + "y" * 500) == "x" * 500 + REDACTED + "y" * 500


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert secret_kind(text) is None


def test_commits_and_settings_stay_in_a_text() -> None:
    text = f"{DIGITS[:40]} {' '.join(SETTINGS.values())} {os.environ['SSH_AUTH_SOCK']}"
    assert redact(text) == text


def test_a_commit_is_let_in_as_a_revision_and_in_a_path() -> None:
    sha = DIGITS[:40]
    config = compose(["model=tiny", f"model.revision={sha}", f"dataset.revision={sha}", f"model.path=/a/snapshots/{sha}"])
    assert config.model.revision == config.dataset.revision == sha
    assert compose(["forgetting.tokens=0", "eval.max_new_tokens=3"]).eval.max_new_tokens == 3


def test_redaction_is_fast(figure: Callable[[str, str], None]) -> None:
    line = '{"step": 12, "train/loss": 2.31, "learning_rate": 0.001, "note": "https://example.org/x-y_z sk-learn"}\n'
    text = (line * 2000)[:100_000]
    times = []
    for _ in range(30):
        began = time.perf_counter()
        assert redact(text) == text
        times.append(time.perf_counter() - began)
    assert min(times) < 1e-3
    figure("Attacks", f"redaction of 100 kB: {min(times) * 1e3:.1f} ms")


def test_secrets_are_refused_at_the_door(refused: Refused, folder: Path) -> None:
    hub, old = SECRETS["hub"], SECRETS["W&B, old"]
    experiments = {
        "value": f"tracking: {{project: {hub}}}",
        "digits": f"tracking: {{entity: {old}}}",
        "resolver": "tracking: {project: '${oc.env:WANDB_API_KEY}'}",
        "choice": "defaults: [{override /variant: '${oc.env:MY_SECRET}'}]",
        "kind": f"lora: {{r: {hub}}}",
        "key": f"{hub}: 1",
    }
    place = folder / "own/experiment"
    place.mkdir(parents=True)
    for name, text in experiments.items():
        (place / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    commands = [
        *([f"tracking.project={hub}"], ["-m", f"tracking.project=a,{hub}"], [f"+wandb.api_key={OWN[0]}"], [f"lora.r={hub}"]),
        *([f"--token={hub}"], ["--token=abc"], [f"--config-dir={hub}"], [hub], ["tracking.project=${oc.env:WANDB_API_KEY}"]),
        *(["--config-dir=own", f"experiment={name}", "dataset.path=nosuch", "dataset=jsonl"] for name in experiments),
    ]
    for arguments in commands:
        line = refused(*arguments, "model=tiny")
        assert not any(secret in line for secret in (*OWN, hub, old)), line
        assert "nosuch" not in line, "refused for what it is, not for the missing file"
    assert evaluate([f"sweep={hub}"]) == 2


def hits(folder: Path, secrets: list[str]) -> list[str]:
    """The files in which a secret stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    return [
        f"{path.relative_to(folder)}: {word[:6]}..." for path in files for word in secrets if word.encode() in path.read_bytes()
    ]


@pytest.mark.filterwarnings("ignore")
def test_no_secret_in_what_a_run_writes(
    train_pack: TrainPack, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from src.model import models

    secrets = [*OWN, SECRETS["GitHub"]]

    def load(*_: object) -> None:
        raise RuntimeError(f"401 Unauthorized: {' '.join(secrets)}")

    assert train_pack(["tracking=wandb_offline"]).results[0]["status"] == "ok"
    monkeypatch.setattr(models, "load", load)
    failed = train_pack(["tracking=wandb_offline", "seed=1"]).results[0]
    assert failed["status"] == "failed" and "401 Unauthorized" in failed["reason"]
    shown = capfd.readouterr()
    assert not [secret for secret in secrets if secret in shown.out + shown.err]
    assert hits(folder, secrets) == []


def test_no_secret_in_what_the_commands_write(
    folder: Path, size: Callable[[int, int], int], figure: Callable[[str, str], None]
) -> None:
    if not size(0, 1):
        pytest.skip("the long form runs the commands; the short one does the same in this process")
    work, broken, said = folder / "work", folder / "broken", SECRETS["GitHub"]
    work.mkdir()
    broken.mkdir()
    (broken / "config.json").write_text(f'{{"model_type": "{said}"}}')  # transformers' exception repeats it
    env = {**ENVIRONMENT, **{name: os.environ[name] for name in (*MACHINE, "NETRC", "HF_TOKEN_PATH")}}
    shown = ""
    for module, arguments in (
        ("src.train", ["-m", *TINY, "tracking=wandb_offline", "sweep=mine", "seed=0,1"]),
        ("src.train", [*TINY, "tracking=wandb_offline", "model=path", f"model.path={broken}"]),
        ("src.train", [*TINY, f"tracking.project={SECRETS['hub']}"]),
        ("src.train", [*TINY, "tracking.project=${oc.env:MY_SECRET}"]),
        ("src.variants", ["model=tiny", f"model.id={SECRETS['hub']}"]),
        ("src.eval", ["sweep=mine"]),
        ("src.eval", []),
    ):
        words = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(words, cwd=work, env=env, capture_output=True, text=True, timeout=300)
        shown += done.stdout + done.stderr
    secrets = [*OWN, said, SECRETS["hub"]]
    assert REDACTED in shown and ": ok" in shown
    assert not [secret for secret in secrets if secret in shown]
    assert hits(work, secrets) == []
    figure("Attacks", f"{len(secrets)} secrets in the environment, netrc, argv, an exception: 0 in any file or output")
