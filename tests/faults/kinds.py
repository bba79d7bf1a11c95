"""Kinds of silent faults: what happens now, a figure that was seen, and the test. Of docs/reliability.md.

The first figure of a row is that of the same input on commit 5b05114, the second what it is now; one processor each time.
"""

from __future__ import annotations

# (kind, what happens now, figure, test)
KINDS = (
    ("A field of a model's config changes the forward pass in a way that packing breaks: attention, rope by the longest row,"
     " scaled embeddings, caps of logits, windows",
     "Before training, every pack is compared with transformers and PEFT: in fp32 over the first layers of each kind, with one"
     " run and two and rows up to the longest; then as it trains, over all layers. A gap above the bound of rounding refuses the"
     " run. The record has it as the check `equals_peft`.",
     "attention without a causal mask: test loss 3.178, now 5.263 in both engines; gaps seen at load on SmolLM2-135M, 1 being the"
     " bound: 0.02 in fp32, up to 0.15 in bf16, int8, NF4 and FP4 on one H200",
     "tests/engine/packed/test_selfcheck.py"),
    ("Dropout inside the base", "engine=packed refuses it by the name of its key; engine=peft seeds it by run and step.",
     "an interrupted run went on to other bits (5.9234, 5.9031); now refused",
     "tests/engine/packed/test_selfcheck.py::test_dropout_inside_the_base_is_refused_by_name"),
    ("Rows that share a sequence, longer together than the sliding window", "They train: each row sees itself alone.",
     "refused; now trains to 6.331, as engine=peft",
     "tests/engine/packed/test_backbone.py::test_rows_in_one_sequence_may_exceed_the_sliding_window_together"),
    ("Tensors that a base's files lack, or hold beyond its config", "Refused while planning: how many, and the first.",
     "test loss 6.142, then 6.227 by the same command; now one line, exit 2", "tests/model/test_pretrained.py"),
    ("Contents of files or base weights that changed between the runs of a sweep",
     "Data, tokens and base are part of a row: never averaged, never paired, a confound of the audit.",
     "\"No confound\", exit 0; now a confound that names both contents, and strict=true exits with 2",
     "tests/compare/test_contents.py"),
    ("A target's end: an end token that is written already, a template that ends a turn otherwise than the tokenizer",
     "One place decides it and where decoding stops; the record says so (`target_end`).",
     "exact match 0.000 of right answers, now 1.000", "tests/data/test_template.py, tests/measure/test_measure.py"),
    ("A precision that leaves most of a base in 16 bits, as of fused experts",
     "Parameters are counted, not layers (`base_share` in the record). Less than all is refused.",
     "\"8 of 8 nf4 layers, ok\" over a mixtral whose experts are 16 bits; now refused while planning",
     "tests/variants/test_share.py"),
    ("A text that looks like a number: sweep=2024_01, dataset.path=1_000", "A key that is a text keeps what was typed.",
     "202401 and 1000; now 2024_01 and 1_000", "tests/command/test_texts.py"),
    ("A key of a row that nothing reads", "Refused by its name, unless dataset.ignore_columns names it.",
     "a question left out of its prompt without a word; now one line, exit 2",
     "tests/data/test_columns.py, tests/data/test_rows_are_read.py"),
    ("A key of dataset.* that does nothing with this source", "Refused by its name.", "ignored; now one line, exit 2",
     "tests/data/test_sources.py"),
    ("A chat whose roles, tools, calls, weights or parts the template does not render",
     "Rendered as the template renders them, or refused with the row.", "dropped; now rendered or one line",
     "tests/data/test_chats.py, tests/data/test_template.py"),
    ("Questions of validation or test in train but for case, white space or Unicode form, in one file",
     "Left out and counted (`rows_left_out`); dataset.leaks=exact or off lets them and counts them (`rows_leaking`).",
     "16 of 28 test questions stood in train, 0 counted; now 29 rows left out", "tests/data/test_leaks.py"),
    ("What config.json, tokenizer files, weight headers or the first rows tell",
     "Refused while planning, exit 2, before the first job of a sweep.",
     "exit 1 after loading or after all training; now one line before anything starts",
     "tests/sweep/test_bases.py, tests/model/test_headers.py, tests/model/test_tokenizer_files.py,"
     " tests/data/test_renderable.py"),
    ("Live checks that can only fail: GPT-2's Conv1D, experts, layers that no text reaches",
     "Counted from the modules where no closed form holds; the check says which.",
     "failed after training (\"the closed form says 0\"); now ok", "tests/train/test_checks.py"),
    ("Merging on a GPU", "Computed on the adapter's device, layer by layer.",
     "failed for every variant; now 14 of 14 variants, both bases of a merge: largest logit gap 3e-07 in fp32 over a 16-bit base"
     " (random model, one H200)", "tests/adapter/test_on_a_gpu.py, tests/adapter/test_fold.py"),
    ("A worker whose folder or lock is no longer its own", "It stops at its next write and makes nothing anew.",
     "went on unheard; now ends with a line and code 4", "tests/sweep/test_held.py"),
)  # fmt: skip

HEAD = """\
## Silent faults

What gave a wrong number, left data out without a word, or failed late, in reports of users of other tools and here. The tests are
of the kind, not of the one input.

| kind | what happens now | seen before and now | test |
|---|---|---|---|
"""


def section() -> str:
    """Write the section as Markdown."""
    return HEAD + "".join(f"| {' | '.join(part.replace('|', chr(92) + '|') for part in kind)} |\n" for kind in KINDS)
