"""Command lines as people mistype them, and as nobody would: hypothesis strategies for lists of arguments."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from src.command.admission import GROUPS
from src.command.messages import known_keys
from src.config.schema import CONF_FOLDER, Shape
from src.config.values import CHOICES, RANGES

# What a test's folder holds beside a good rows.jsonl.
PATHS = (
    "rows.jsonl", "nosuch", ".", "/", "/dev/null", "~", "~nobody/x", "rows.jsonl/x", "pipe", "'a b'", "''", "a" * 300,
    "a/" * 3000,
)  # fmt: skip
PATH_KEYS = ("dataset.path", "dataset.val_path", "dataset.test_path", "forgetting.path", "model.path")
NAMES = {group: sorted(path.stem for path in (CONF_FOLDER / group).glob("*.yaml")) for group in GROUPS}

NUMBERS = (
    "0", "-0", "+1", "1", "2", "3.5", "-1", "1_000", "1__0", "0x10", "0b1", "0o7", "007", ".5", "1.", "1e3", "1e400", "-1e400",
    "1e-400", "nan", "NaN", "inf", "-inf", "infinity", "1e", "--1", "1,", "1.2.3", "9" * 400, "9" * 5000, "-" + "9" * 5000,
    "1" + "0" * 19, "٣",
)  # fmt: skip
WORDS = ("null", "None", "~", "true", "TRUE", "off", "yes", "no", "y", "", "''", '""', "???", "abc", "a b", "'a b'", "all-linear")
QUOTES = (
    "'open", '"open', "o'pen", "'a'b", r"\,", r"\=", "\\", r"a\ b", "a=b", "a:b", "a@b", "#a", "%20", "'it''s'", r"'it\'s'",
    "()", "{}",
)  # fmt: skip
INTERPOLATIONS = (
    "${seed}", "${data_seed}", "${lora.r}", "${lora}", "${model.name}", "${nosuch}", "${nosuch:1}", "${.r}", "${..seed}",
    "${...x}", "${oc.env:HOME}", "${oc.env:NOSUCH}", "${oc.env:NOSUCH,null}", "${oc.env:NOSUCH,3}", "${oc.decode:'[1,2]'}",
    "${oc.decode:'['}", "${oc.create:{a:1}}", "${oc.dict.keys:lora}", "${oc.dict.values:lora}", "${oc.select:lora.r}",
    "${oc.select:x,7}", "${hydra:mode}", "${hydra:runtime.cwd}", "${oc.deprecated:seed}", "a${seed}b", "'${seed}'", "${", "${}",
    "${a", "$", "$${seed}", "${${seed}}", "${seed", "${train.steps}", "${lora.target_modules}", "${dataset.labels}", "${sweep}",
    "\\${seed}",
)  # fmt: skip
FUNCTIONS = (
    "choice(1,2)", "choice(a)", "choice()", "choice(", "range(1,3)", "range(3)", "range(1,2,0)", "range(1,2,0.5)", "range(a)",
    "range(2,1)", "interval(1,2)", "interval(0,a)", "glob(*)", "glob(d*)", "glob([a*,b*],exclude=*c)", "glob(1)", "sort(3,1,2)",
    "sort(1,2,reverse=true)", "sort(1,a)", "sort([2,1])", "shuffle(1,2,3)", "shuffle(range(1,4))", "shuffle([1])",
    "tag(a,choice(1,2))", "tag(1)", "int('3')", "int(x)", "int([1,2])", "str(3)", "str({a:1})", "float(1)", "float(nan)",
    "bool(maybe)", "bool(on)", "json_str({a:1})", "extend_list(1,2)", "extend_list()", "nosuch(1)", "int()", "int(1,2)",
    "choice(choice(1))", "int(choice(1,2))", "range(start=1,stop=3)", "range(step=1)",
)  # fmt: skip
NESTED = (
    "[1,2]", "[]", "[[1],[2,[3]]]", "[q_proj,v_proj]", "[q_proj,q_proj]", "[all-linear]", "[null]", "[,]", "[1", "1]", "[a b]",
    "[nosuch]", "{a:1}", "{r:4}", "{r:4,alpha:8}", "{a:{b:{c:1}}}", "{a:1,a:2}", "{1:2}", "{a}", "{a:}", "{a:1", "{null:1}",
    "{true:[1,{x:null}]}", "{name:x}", "{steps:3}", "{[1]:2}", "[" * 60 + "]" * 60, "[" * 2000 + "]" * 2000, "[" * 500,
    "{a:" * 150 + "1" + "}" * 150, "1,2", "lora,dora", "1,,2", "a,",
)  # fmt: skip
HYDRA_KEYS = (
    "hydra.mode", "hydra.job.name", "hydra.sweeper.params", "hydra.nosuch", "hydra", "hydra.verbose",
    "hydra.sweeper.params.seed", "hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/help", "hydra/nosuch",
    "hydra.searchpath", "hydra.job.chdir",
)  # fmt: skip
OPTIONS = (
    ["-m"], ["--multirun"], ["-m", "-m"], ["--cfg", "job"], ["--cfg", "hydra"], ["--cfg", "all"], ["--cfg", "nosuch"],
    ["--cfg"], ["-c", "job"], ["--help"], ["-h"], ["--hydra-help"], ["--version"], ["--info"], ["--info", "defaults"],
    ["--info", "nosuch"], ["--resolve"], ["--cfg", "job", "--resolve"], ["--cfg", "job", "--package", "lora"],
    ["--cfg", "job", "-p", "no.such"], ["--package"], ["--config-dir", "nosuch"], ["--config-dir", "."], ["--config-dir"],
    ["-cd", "nosuch"], ["--config-path", "nosuch"], ["-cp", "."], ["--config-name", "other"], ["-cn", "other"],
    ["-cn", "../config"], ["-cn", ""], ["--config-name=config"], ["--run"], ["-r", "-m"], ["--nosuch"], ["--nosuch=1"], ["-x"],
    ["-"], ["--"], ["--", "lora.r=4"], ["---"], ["-mlora.r=4,8"], ["--multi"], ["-mc", "job"], ["--shell-completion"],
    ["-sc", "install=bash"], ["-sc", "nosuch"],
)  # fmt: skip

# An argument of a process is bytes: no NUL in it, and what is not UTF-8 arrives as these surrogates.
CHARACTERS = st.one_of(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
)
SIGNS = st.sampled_from("=+~@:,.'\"\\()[]{}$#%&*/-_ \t\n\r\x1b\x7f\x85\u2028\u202e0aé😀")
TEXTS = st.text(st.one_of(SIGNS, CHARACTERS), max_size=12)

KNOWN = known_keys() + [f"model.shape.{entry.name}" for entry in fields(Shape)]
VALUES = st.one_of(*(st.sampled_from(kind) for kind in (NUMBERS, WORDS, QUOTES, INTERPOLATIONS, FUNCTIONS, NESTED)), TEXTS)

BUDGETS = (
    "4.88M", "4_884_480", "lora:16", "dora:4", "lora:0", "lora:x", "nosuch:4", "lora:", ":4", "", "0", "-1", "1e99", "1e999",
    "full:4", "9" * 5000, "lora:" + "9" * 5000, "1.5.5", "nan", "1e3b", "٣", "lora:٣", "${seed}", "\x1b", "lora:16:4",
)  # fmt: skip


@st.composite
def good_values(draw: st.DrawFn, key: str) -> str:
    """A value that the key may have, as far as its own kind goes."""
    if key in CHOICES:
        return draw(st.sampled_from(CHOICES[key]))
    if key in RANGES:
        low, high, _ = RANGES[key]
        whole = isinstance(low, int)
        return draw(st.sampled_from([f"{low}", f"{min(high, 4):g}", "null"] + (["2", "3", "16"] if whole else ["0.5", "1e-3"])))
    if key in PATH_KEYS:
        return draw(st.sampled_from(PATHS))
    if key in NAMES:
        return draw(st.sampled_from(NAMES[key]))
    return draw(st.sampled_from(["true", "false", "null", "a", "[a,b]", "all-linear", "[q_proj]", "${seed}"]))


@st.composite
def keys(draw: st.DrawFn) -> str:
    """A key of the schema, one that looks like it, a group, one of Hydra's own, or anything."""
    key = draw(st.one_of(st.sampled_from(KNOWN), st.sampled_from(KNOWN), st.sampled_from([*NAMES, *HYDRA_KEYS]), TEXTS))
    spelled = draw(st.sampled_from(["", "", "", "", "", "typo", "case", "dots", "package", "index"]))
    if spelled == "typo" and key:
        at = draw(st.integers(0, len(key) - 1))
        return key[:at] + draw(st.sampled_from(["", "x", "_", " ", ".", "/", "-"])) + key[at + 1 :]
    if spelled == "case":
        return key.upper()
    if spelled == "dots":
        return draw(
            st.sampled_from([f".{key}", f"{key}.", key.replace(".", ".."), f"{key}.x", f"lora.{key}", key.replace(".", "/")])
        )
    if spelled == "package":
        return f"{key}@{draw(st.sampled_from(['lora', '', '_global_', 'a.b', ':', 'lora:train', '_here_']))}"
    return f"{key}[0]" if spelled == "index" else key


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """``key=value``, with what Hydra allows around it."""
    key = draw(keys())
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return draw(
            st.sampled_from(
                [f"~{key}", f"~{key}={draw(VALUES)}", key, f"={key}", f"{key}:3", f"--{key}=3", f"{key}=", f"~{key}="]
            )
        )
    if kind == 1:
        return draw(TEXTS)
    value = draw(good_values(key)) if kind < 10 else draw(VALUES)
    prefix = draw(st.sampled_from(["", "", "", "", "", "", "+", "++"]))
    return f"{prefix}{key}={value}"


def good_overrides() -> SearchStrategy[str]:
    """``key=value`` that may stand."""
    plain = [key for key in (*CHOICES, *RANGES, *NAMES, *PATH_KEYS) if key not in ("tracking.mode",)]
    return st.sampled_from(plain).flatmap(lambda key: good_values(key).map(lambda value: f"{key}={value}"))


CYCLES = (
    ["seed=${data_seed}", "data_seed=${seed}"], ["lora.r=${lora.r}"], ["lora.r=${train.steps}", "train.steps=${lora.r}"],
    ["model.name=${model.path}", "model.path=${model.name}"], ["lora=${lora}"], ["sweep=${oc.select:sweep}"],
    ["+a=${b}", "+b=${a}"],
)  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """The arguments of one command: some good ones, some of any kind, options, in any order, now and then twice."""
    line = ["model=tiny"] if draw(st.integers(0, 9)) else []
    line += draw(st.lists(good_overrides(), max_size=3))
    line += draw(st.lists(overrides(), max_size=2))
    if not draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(line)))
        line[at:at] = draw(st.sampled_from(OPTIONS))
    if not draw(st.integers(0, 9)):
        line += draw(st.sampled_from(CYCLES))
    if line and not draw(st.integers(0, 9)):
        line.append(draw(st.sampled_from(line)))
    if not draw(st.integers(0, 19)):
        line.append("")
    return line


def budget_lines() -> SearchStrategy[list[str]]:
    """The arguments of ``python -m src.variants``, which may ask for a budget too."""
    budgets = st.lists(st.one_of(st.sampled_from(BUDGETS), TEXTS).map("match={}".format), max_size=1)
    return st.tuples(lines(), budgets).map(lambda both: both[0] + both[1])
