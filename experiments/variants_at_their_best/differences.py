"""Write both questions in Markdown: differences of ranks and of variants, each at its best rate and both at one rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from experiments.markdown import table
from experiments.variants_at_their_best.questions import NAMES, REFERENCE, Cell, Study, wider_p
from src.compare.columns import decimals, p_value, short, signed, with_interval
from src.compare.contrasts import Contrast, View

Row = dict[str, str]
Named = tuple[str, Contrast]  # a row's first cell and its difference


def ranks(study: Study) -> str:
    views = {variant: study.of_ranks(variant) for variant in study.variants}
    wider = wider_p(list(views.values()))
    rows, lines = [], []
    for variant, view in views.items():
        for contrast in view.contrasts:
            pair = " - ".join(str(study.cell(row)[1]) for row in (contrast.row, contrast.reference))
            rows.append({"variant": NAMES[variant], "ranks": pair} | _row(study, contrast, wider))
        lines.append(f"- {NAMES[variant]}: {_spread(study, variant)} {_verdicts(view, _ranks_of(study, ' against '))}")
    about = (
        "Each rank minus the lowest, and minus the one that validation on the tuning seeds calls best; a family is a variant's"
    )
    return "\n\n".join([f"{about} ranks. {_smallest(list(views.values()))}", *_table(rows), *_lines(lines)])


def variants(study: Study) -> str:
    views = {r: study.of_variants(r) for r in study.ranks}
    wider = wider_p(list(views.values()))
    rows, lines = [], []
    for r, view in views.items():
        rows += [
            {"r": str(r), "variant": NAMES[study.cell(contrast.row)[0]]} | _row(study, contrast, wider)
            for contrast in view.contrasts
        ]
        means = {variant: fmean(losses) for variant in study.variants if (losses := study.losses((variant, r)))}
        if means:
            first = min(means, key=lambda variant: means[variant])
            lowest = f"lowest mean {NAMES[first]}, {decimals(means[first])}."
            lines.append(f"- r={r}: {lowest} To LoRA, {_verdicts(view, lambda contrast: NAMES[study.cell(contrast.row)[0]])}")
    about = f"Each variant minus {NAMES[REFERENCE]} at the same rank; a family is a rank."
    return "\n\n".join([f"{about} {_smallest(list(views.values()))}", *_table(rows), *_lines(lines), *_rescaled(study)])


def one_rate(study: Study) -> str:
    """Write the same differences with one rate for both, rate by rate, beside those at each one's best rate."""
    tuning = len(study.result.selection.split.tuning)
    parts = [
        f"Test loss, over all seeds that both have at that rate (n = {tuning} where not said; a seed at which one of them"
        " diverged is left out). Last, each at its own best rate, report seeds."
    ]
    of_variants = [
        (f"r={r}: {NAMES[study.cell(contrast.row)[0]]} - LoRA", contrast)
        for r in study.ranks
        for contrast in study.of_variants(r).contrasts
    ]
    of_ranks = [
        (f"{NAMES[variant]}: {_ranks_of(study, ' - ')(contrast)}", contrast)
        for variant in study.variants
        for contrast in study.of_ranks(variant).contrasts
        if study.cell(contrast.reference)[1] == study.ranks[0]
    ]
    for pairs in (of_variants, of_ranks):
        parts += _table(at_rates(study, pairs, tuning))
    return "\n\n".join(parts)


def at_rates(study: Study, pairs: Sequence[Named], tuning: int) -> list[Row]:
    """Make a row for each difference, and one with the largest size in each column; n is written where it is not ``tuning``."""
    every = study.at_one_rate([contrast for _, contrast in pairs])
    grid, rows = sorted(every["learning_rate"].unique()), []
    for title, contrast in pairs:
        by_rate = every[(every["row"] == contrast.row) & (every["reference"] == contrast.reference)].set_index("learning_rate")
        row = {"": title}
        for rate in by_rate.index:
            n = by_rate["n"][rate]
            row[f"{rate:g}"] = signed(by_rate["difference"][rate]) + (f" (n={n})" if n != tuning else "")
        rows.append({"": title} | {f"{rate:g}": row.get(f"{rate:g}", "-") for rate in grid} | {BEST: difference(contrast)})
    largest = every["difference"].abs().groupby(every["learning_rate"]).max()
    tuned = max((abs(contrast.test.mean) for _, contrast in pairs if contrast.test.n), default=math.nan)
    last = {"": "the largest in size"} | {f"{rate:g}": decimals(largest[rate]) for rate in grid}
    return [*rows, last | {BEST: decimals(tuned)}] if rows else []


BEST = "each at its best [95%]"


def _table(rows: list[Row]) -> list[str]:
    return [table(rows)] if rows else []


def _lines(lines: list[str]) -> list[str]:
    return ["\n".join(lines)] if lines else []


def difference(contrast: Contrast) -> str:
    return with_interval(contrast.test.mean, contrast.test.low, contrast.test.high) if contrast.test.n else "-"


def _row(study: Study, contrast: Contrast, wider: dict[tuple[int, int], float]) -> Row:
    rates = [study.condition(study.cell(row)).chosen for row in (contrast.row, contrast.reference)]
    tested = {
        "p (Holm)": contrast.p_holm,
        "p of t (Holm, all)": wider[contrast.row, contrast.reference],
        "p of TOST": contrast.test.p_tost,
    }
    return {
        "rates": " / ".join("-" if rate is None else short(rate) for rate in rates),
        "n": str(contrast.test.n),
        "difference [95%]": difference(contrast),
        **{title: "-" if math.isnan(p) else p_value(p) for title, p in tested.items()},
        "verdict": contrast.verdict,
    }


def _smallest(views: list[View]) -> str:
    """Write the smallest p that is possible, and describe the wider family."""
    every = sum(view.family for view in views)
    tested = {
        (view.family, max(contrast.test.n for contrast in view.contrasts)): view.smallest_p for view in views if view.family
    }
    least = "; ".join(f"{p_value(p)} with {n} seeds and {m} differences" for (m, n), p in sorted(tested.items()))
    if not least:
        return "Nothing is tested yet."
    return f"The smallest p that can come out: {least}. Beside it, p of the paired t test after Holm over all {every}."


def _verdicts(view: View, label: Callable[[Contrast], str]) -> str:
    """Group pairs by verdict: ``differs: ... -0.0100, ...; equivalent: ...``."""
    by_verdict: dict[str, list[str]] = {}
    for contrast in view.contrasts:
        size = f" {signed(contrast.test.mean)}" if contrast.test.n else ""
        by_verdict.setdefault(contrast.verdict, []).append(label(contrast) + size)
    return (
        "; ".join(f"{verdict}: {', '.join(pairs)}" for verdict, pairs in sorted(by_verdict.items())) + "."
        if by_verdict
        else "No pair."
    )


def _ranks_of(study: Study, between: str) -> Callable[[Contrast], str]:
    return lambda contrast: between.join(f"r={study.cell(row)[1]}" for row in (contrast.row, contrast.reference))


def _spread(study: Study, variant: str) -> str:
    means = {r: fmean(losses) for r in study.ranks if (losses := study.losses((variant, r)))}
    if len(means) < 2:
        return "Fewer than two ranks have a number."
    low, high = (pick(means, key=lambda r: means[r]) for pick in (min, max))
    span = f"{decimals(means[low])} (r={low}) to {decimals(means[high])} (r={high}), {decimals(means[high] - means[low])} apart"
    return f"best by validation r={study.best_rank(variant)}; means from {span}."


def _rescaled(study: Study) -> list[str]:
    """Find the alpha at which LoRA equals each variant that differs in scale alone."""
    scales, alphas = study.result.table["effective_scale"], study.result.table["alpha"]
    by_variant: dict[str, list[str]] = {}
    cells: list[Cell] = [cell for cell in study.rows if cell[1] is not None and (REFERENCE, cell[1]) in study.rows]
    for cell in cells:
        scale, r = scales[study.rows[cell]], cell[1] or 0
        if not math.isclose(scale, scales[study.rows[REFERENCE, r]], rel_tol=1e-9):
            by_variant.setdefault(NAMES[cell[0]], []).append(f"{scale * r:g} at r={r}")
    return [
        f"At one rank {variant} is LoRA at another alpha, to the bit: {', '.join(alpha)}, where LoRA has"
        f" {alphas.dropna().iloc[0]:g}. Its difference is one of scale, and of where the grid of rates falls."
        for variant, alpha in by_variant.items()
    ]
