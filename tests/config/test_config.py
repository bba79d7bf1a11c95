"""Every YAML composes, the identity of a run is stable, and impossible values are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.command.cli import compose, compose_jobs, register_schema
from src.config.schema import CONF_FOLDER
from src.config.values import resolve
from src.files.errors import ConfigError
from src.record.records import run_id


def names(group: str) -> list[str]:
    folder = CONF_FOLDER / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("**/*.yaml"))


@pytest.mark.parametrize("group", ["model", "variant", "dataset", "tracking"])
def test_every_yaml_composes(group: str) -> None:
    assert names(group)
    for name in names(group):
        compose([f"{group}={name}"])


def test_every_experiment_composes() -> None:
    for name in names("experiment"):
        if not name.startswith("finlora/"):  # these in test_finlora.py
            compose([f"experiment={name}"])


def test_the_name_of_a_variant_file_is_the_name_in_the_table() -> None:
    for name in names("variant"):
        assert compose([f"variant={name}"]).variant.name == name


def test_no_two_variants_are_the_same_point() -> None:
    variants = [vars(compose([f"variant={name}"]).variant) for name in names("variant")]
    points = [tuple(value for key, value in variant.items() if key not in ("name", "double_quant")) for variant in variants]
    assert len(set(points)) == len(points)


def test_every_experiment_is_global_and_so_takes_effect() -> None:
    for path in (CONF_FOLDER / "experiment").glob("**/*.yaml"):
        assert path.read_text().startswith("# @package _global_\n"), path


def test_config_names_no_code() -> None:
    for path in CONF_FOLDER.glob("**/*.yaml"):
        assert "_target_" not in path.read_text(), path


def test_the_axes_compose_freely() -> None:
    config = compose(["variant=dora", "variant.scaling=alpha_over_sqrt_r"])
    assert config.variant.name == "dora_rs"
    assert run_id(config) == run_id(compose(["variant=dora_rs"]))
    assert compose(["variant=qlora", "variant.base_precision=int8"]).variant.name == "lora_8bit"
    assert compose(["variant=frozen", "variant.base_precision=nf4"]).variant.name == "frozen_nf4"
    assert compose(["variant=qlora", "variant.base_precision=fp4"]).variant.name == "lora_fp4"
    assert run_id(compose(["variant=qlora"])) != run_id(compose(["variant=qlora", "variant.base_precision=fp4"]))


def test_the_default_run_id_is_pinned() -> None:
    """A changed default, or a new field, renames every run: it must be a decision, not an accident.

    Decided since the first release, whose default was 87a53e1b0f: the default engine is ``packed``, which equals PEFT's
    up to rounding only, and ``eval.batch_size`` is left to the machine.
    """
    assert run_id(compose([])) == "0eed806141"
    assert run_id(compose(["engine=peft", "eval.batch_size=64"])) == "87a53e1b0f"


@pytest.mark.parametrize(
    "override",
    ["tracking=disabled", "tracking.project=x", "device=cpu", "force=true", "sweep=x", "train.checkpoint_every=7",
     "pack.max_runs=3", "pack.compile=false", "pack.cuda_graph=false", "pack.kernels=false", "model.hold_dequantised=true"],
)  # fmt: skip
def test_where_and_how_a_run_is_watched_is_not_its_identity(override: str) -> None:
    assert run_id(compose([override])) == run_id(compose([]))


@pytest.mark.parametrize(
    "override",
    ["seed=1", "data_seed=1", "lora.r=8", "lora.alpha=8", "train.lr=0.01", "variant=dora", "model=tiny", "engine=peft",
     "train.steps=301", "eval.test_examples=8", "dataset.max_length=64", "model.weights=random", "forgetting.tokens=0",
     "forgetting.path=x.txt"],
)  # fmt: skip
def test_everything_else_is(override: str) -> None:
    assert run_id(compose([override])) != run_id(compose([]))


def test_the_default_prose_leaves_the_ids_of_records_from_before_it() -> None:
    assert run_id(compose(["forgetting.tokens=4096", "forgetting.path=null"])) == "0eed806141"
    assert run_id(compose(["variant=frozen", "forgetting.tokens=64"])) != run_id(compose(["variant=frozen"]))


def test_a_held_copy_is_the_identity_of_a_4_bit_run_alone() -> None:
    """It changes no number, but time and memory, which the table compares; other bases have nothing to hold."""
    assert run_id(compose(["variant=qlora", "model.hold_dequantised=true"])) != run_id(compose(["variant=qlora"]))


def test_a_control_without_an_adapter_does_not_depend_on_the_rank() -> None:
    assert run_id(compose(["variant=frozen", "lora.r=4"])) == run_id(compose(["variant=frozen", "lora.r=8"]))
    assert run_id(compose(["variant=full", "lora.r=4"])) == run_id(compose(["variant=full", "lora.r=8", "engine=peft"]))
    assert run_id(compose(["variant=lora", "lora.r=4"])) != run_id(compose(["variant=lora", "lora.r=8"]))


def test_seeds_of_init_and_data_are_apart_and_follow_each_other_by_default() -> None:
    assert compose(["seed=3"]).data_seed == 3
    assert compose(["seed=3", "data_seed=0"]).data_seed == 0


def test_target_modules() -> None:
    assert compose(["lora.target_modules=all-linear"]).lora.target_modules == "all-linear"
    assert compose(["lora.target_modules=[v_proj,q_proj]"]).lora.target_modules == ["q_proj", "v_proj"]
    assert run_id(compose(["lora.target_modules=[v_proj,q_proj]"])) == run_id(compose(["lora.target_modules=[q_proj,v_proj]"]))


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("lora.r=0", "lora.r=0", "whole number from 1"),
        ("lora.r=abc", "lora.r=abc", "needs a whole number"),
        ("lora.r=1.5", "lora.r=1.5", "needs a whole number"),
        ("lora.r=1000000000", "lora.r=1000000000", "to 65536"),
        ("lora.alpha=-1", "lora.alpha=-1", "needs a number"),
        ("lora.dropout=1", "lora.dropout=1", "below 1"),
        ("lora.target_modules=[]", "lora.target_modules", "list of module names"),
        ("lora.target_modules=[q_proj,q_proj]", "lora.target_modules", "twice"),
        ("lora.init=zeros", "lora.init=zeros", "kaiming, gaussian"),
        ("variant=nosuch", "variant=nosuch", "choose one of dora,"),
        ("variant=dorra", "variant=dorra", "did you mean dora?"),
        ("variant.scaling=alpha", "variant.scaling=alpha", "alpha_over_r, alpha_over_sqrt_r"),
        ("variant.name=mine", "variant.name", "derived"),
        ("model=nosuch", "model=nosuch", "tiny"),
        ("model.weights=trained", "model.weights=trained", "pretrained, random"),
        ("nosuch=1", "nosuch", "no such key"),
        ("+nosuch=1", "nosuch", "no such key"),
        ("+lora.rank=8", "lora.rank", "no such key"),
        ("lora.r=null", "lora.r=null", "needs a value"),
        ("variant=null", "variant=null", "needs one name"),
        ("variant=[qlora,dora]", "variant=[qlora,dora]", "-m variant=A,B"),
        ("dataset.path=a (1).jsonl", "dataset.path=a (1).jsonl", "quoted"),
        ("lora.target_modules=[all-linear,q_proj]", "lora.target_modules", "stands alone"),
        ("lora.rank=4", "lora.rank", "no such key"),
        ("train.stepss=4", "train.stepss", "did you mean train.steps?"),
        ("~lora", "lora", "cannot be removed"),
        ("train.steps=-1", "train.steps=-1", "whole number from 1"),
        ("train.lr=nan", "train.lr=nan", "needs a number"),
        ("train.lr=0", "train.lr=0", "needs a number"),
        ("train.schedule=step", "train.schedule=step", "linear, cosine, constant"),
        ("train=3", "train", "TrainConfig"),
        ("engine=magic", "engine=magic", "packed, peft"),
        ("forgetting.tokens=-1", "forgetting.tokens=-1", "whole number from 0"),
        ("pack.max_runs=0", "pack.max_runs=0", "whole number from 1"),
        ("seed=-1", "seed=-1", "from 0"),
        ("sweep=../../escape", "sweep='../../escape'", "letters"),
        ("force=maybe", "force", "bool"),
        ("experiment=nosuch", "experiment=nosuch", "demo"),
        ("dataset.test_share=0.99", "dataset.val_share", "below 1"),
        ("lora.r=4,8", "lora.r=4,8", "-m"),
        ("lora.r", "lora.r", "key=value"),
        ("=3", "=3", "key=value"),
        ("lora.r=[", "lora.r=[", "key=value"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_the_key(override: str, key: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    message = str(caught.value)
    assert message.startswith(key), message
    assert says in message, message
    assert "\n" not in message


def test_a_control_refuses_an_axis_it_does_not_have() -> None:
    for overrides in (["variant=full", "variant.magnitude=dora"], ["variant=frozen", "variant.scaling=alpha_over_sqrt_r"]):
        with pytest.raises(ConfigError, match="has no adapter"):
            compose(overrides)
    with pytest.raises(ConfigError, match="trains all weights"):
        compose(["variant=full", "variant.base_precision=fp4"])


def test_nothing_heavy_is_imported_by_a_refusal() -> None:
    import subprocess
    import sys

    heavy = ("torch", "transformers", "peft", "wandb", "pandas")
    code = f"import sys, src.sweep.plan, src.command.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(CONF_FOLDER).parent, check=True)
    assert done.stdout.strip() == "[]"


def test_the_jobs_of_a_sweep_are_composed_as_hydra_composes_each() -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    jobs = [
        ["variant=dora", "lora.r=8", "seed=3"],
        ["variant=dora", "lora.r=8", "seed=4", "data_seed=9"],
        ["model=tiny", "variant=lora", "lora.target_modules=[q_proj,v_proj]", "train.epochs=null"],
        ["model=path", "model.path='a b'", "dataset=jsonl", "dataset.labels=[x,y]", "train.lr=1e-4"],
        ["experiment=demo", "train.steps=7", "force=true", "++lora.r=3"],
    ]
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_FOLDER), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], RunMode.MULTIRUN)
        nodes = compose_jobs(loader, master, jobs)
    for (node, choices), job in zip(nodes, jobs, strict=True):
        assert resolve(node) == compose(job), job
        assert choices["variant"] == next((o.split("=")[1] for o in job if o.startswith("variant=")), "lora")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["variant=loraplus", "variant.magnitude=dora"], "dora_loraplus"),
        (["variant=lora_frozen_a", "variant.scaling=alpha_over_sqrt_r"], "rslora_frozen_a"),
        (["variant=loraplus", "variant.base_precision=nf4"], "loraplus_nf4"),
        (["variant=dora", "variant.base_precision=fp4"], "dora_fp4"),
        (["variant=full", "variant.base_precision=fp32"], "full_fp32"),
    ],
)
def test_a_point_without_a_name_is_called_after_its_neighbor(overrides: list[str], name: str) -> None:
    """Two methods must not share a name in a table."""
    assert compose(overrides).variant.name == name
