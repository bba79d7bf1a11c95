"""Compare two runs, test example by test example."""

from __future__ import annotations

from ..files.errors import ConfigError
from ..record.records import RUNS, RunFolder
from .frame import gather


def compare_pair(first: str, second: str) -> None:
    """Print McNemar's test of the answers and the difference in log-loss over the items.

    Raises:
        ConfigError: a run has no predictions, or the two were not scored on the same examples.
    """
    for run in (first, second):
        if not (RUNS / run / "result.json").exists():
            raise ConfigError(f"pair: {run} has no record in {RUNS.absolute()}")
    from . import contents, statistics
    from .logs import items

    a, b = items(first), items(second)
    for run, predictions in ((first, a), (second, b)):
        if predictions is None:
            raise ConfigError(f"pair: {RunFolder(run).predictions} is not there or cannot be read")
    assert a is not None and b is not None
    apart = _unlike(first, second)
    if not a.same_examples(b) or {contents.DATA.name, contents.TOKENS.name} & set(apart):
        why = f": other {', '.join(apart)} under the same names" if apart else ""
        raise ConfigError(f"pair: {first} and {second} were not scored on the same test examples{why}")
    print(f"{first} and {second} on {len(a.ids):,} test examples")
    if apart:
        print(f"confounded: the same config, but other {', '.join(apart)}")
    if a.correct is None or b.correct is None:
        print("answers: not generated in both, so there is nothing to test")
    else:
        test = statistics.mcnemar(a.correct, b.correct)
        print(
            f"answers: right in {a.correct.mean():.4f} and {b.correct.mean():.4f}; only the first right {test.only_a},"
            f" only the second {test.only_b}; McNemar's exact p = {test.p:.4g}"
        )
    difference = (a.nats - b.nats)[None]
    over = statistics.bootstrap(difference, a.tokens, a.clusters)
    error = statistics.item_standard_error(difference[0], a.clusters) * len(a.ids) / a.tokens.sum()
    print(
        f"log-loss: first minus second {over.mean:+.5f} nats per target token, 95% interval over the examples"
        f" [{over.low:+.5f}, {over.high:+.5f}] (bootstrap), standard error {error:.5f}"
    )
    print("Two single runs: this speaks of these two adapters on other examples, not of their variants; those need seeds.")


def _unlike(first: str, second: str) -> tuple[str, ...]:
    """Name the contents that two runs read differently under the same names, as far as their records say."""
    from . import contents

    rows = [row | {"device_type": (row["device"] or "").split(":")[0] or None} for row in gather([first, second]).rows]
    return contents.unlike(rows[0], rows[1]) if len(rows) == 2 else ()
