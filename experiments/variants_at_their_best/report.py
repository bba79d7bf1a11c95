"""``python -m experiments.variants_at_their_best.report [records [unfinished] [more]] [folder=FOLDER]``: tables.md, figures.

Reads results.csv and peft.csv of FOLDER (default: this one) alone. With the word ``records`` results.csv is first written from
the runs below ``runs/``, which must all be of this sweep. A run without a result is refused; with ``unfinished`` it is a row
without numbers; with ``more`` those rows of results.csv are kept unchanged whose records are on another machine.
``python -m src.eval sweep=variants_at_their_best tune=0,1,2`` chooses the same rates.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import sheet
from experiments.variants_at_their_best import cost, figures, results
from experiments.variants_at_their_best.questions import study
from experiments.variants_at_their_best.tables import tables
from src.command import cli, words
from src.command.words import Key
from src.compare.figures import png
from src.compare.frame import MISSING
from src.files.durable import write_atomically
from src.files.errors import ConfigError
from src.record.records import RUNS

HERE = Path(__file__).resolve().parent
RECORDS, UNFINISHED, MORE = "records", "unfinished", "more"
KEYS = {"folder": Key(Path, "FOLDER")}
FIGURES = {"at_their_best.png": figures.at_their_best, "to_lora.png": figures.to_lora, "rates.png": figures.rates}


def main(arguments: Sequence[str]) -> int:
    if "--help" in arguments:
        print(__doc__)
        return 0
    values, free_words = words.read(arguments, KEYS, free="a word")
    if free_words[:1] not in ([], [RECORDS]) or sorted(free_words[1:]) not in ([], [MORE], [UNFINISHED], [MORE, UNFINISHED]):
        raise ConfigError(f"{' '.join(free_words)}: takes no word but {RECORDS}, and after it {UNFINISHED} and {MORE}, each once")
    folder = Path(values.get("folder", HERE))
    place, written, counted = folder / "results.csv", None, None
    if free_words:
        old = results.load(place) if MORE in free_words else None
        known = () if old is None else set(old.loc[old["status"] != MISSING, "run_id"])
        written = results.from_records(UNFINISHED in free_words, known).to_csv(index=False, float_format="%.12g")
        if old is not None:
            written, counted = sheet.merged(place, written, results.KEY)
        runs = results.read(f"{place} and {RUNS.absolute()}" if old is not None else str(RUNS.absolute()), written)
    else:
        runs = results.load(place)
    comparison = study(runs)
    text = tables(comparison, cost.load(folder))
    wanted = dict(FIGURES) if comparison.reported() else {"rates.png": FIGURES["rates.png"]}  # the others would be empty
    drawn = {name: png(draw, comparison) for name, draw in wanted.items()}
    if written is not None:  # replace files only when all of them can be written
        write_atomically(place, written)
    write_atomically(folder / "tables.md", text)
    for name, picture in drawn.items():
        (folder / name).write_bytes(picture)
    if counted is not None:
        print(counted)
    print(text, end="")
    return 0


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]))
