"""Compare losses and continuations of a pack's runs with those of each run alone and with stock PEFT's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from src.config.schema import Config
from src.data.batches import Item
from src.engine.packed.engine import PackedEngine
from src.measure.scorer import Scorer, Solo
from tests.engine.packed.conftest import EOS, FP32, LOGITS, PAD, base_of, config_of, moved, pack_of, rows

ITEMS: list[Item] = rows(11, (1, 14), (1, 6), seed=5)
NEW_TOKENS = 8


def configs_of(variants: list[str]) -> list[Config]:
    return [
        config_of(name, f"seed={index}", f"lora.r={3 + 2 * index}", "lora.dropout=0.3") for index, name in enumerate(variants)
    ]


def random_pack(configs: list[Config], seeds: list[int]) -> PackedEngine:
    pack = pack_of(configs)
    for run, seed in enumerate(seeds):
        pack.load_state(run, moved(pack.state(run), seed=seed))
    return pack


def nats(scorer: Scorer) -> torch.Tensor:
    """[runs, rows]"""
    return torch.tensor([[loss.nats for loss in losses] for losses in scorer.losses(ITEMS)])


@pytest.mark.parametrize("variants", [["lora", "rslora", "dora"], ["qlora", "qdora"]], ids="-".join)
def test_each_run_scores_as_it_would_alone_and_as_stock_peft_does(variants: list[str], folder: Path) -> None:
    """Prompts of 1 to 14 tokens, so that generation pads all but the longest on the left, and losses on the right."""
    configs = configs_of(variants)
    pack = random_pack(configs, list(range(len(configs))))
    scorer = Scorer(pack.scored, 4, PAD)
    losses, answers = nats(scorer), scorer.generate(ITEMS, EOS, NEW_TOKENS)
    assert all(answers[run] != answers[0] for run in range(1, len(configs)))
    for run, config in enumerate(configs):
        pack.save_adapter(run, config, folder / "adapter")
        alone = random_pack([config], [run])
        stock = PeftModel.from_pretrained(base_of(config, FP32), folder / "adapter")
        for scored in (alone.scored, Solo(stock, FP32)):
            other = Scorer(scored, 4, PAD)
            torch.testing.assert_close(nats(other)[0], losses[run], rtol=1e-5, atol=1e-5)
            assert other.generate(ITEMS, EOS, NEW_TOKENS)[0] == answers[run]


def test_an_answer_does_not_depend_on_the_prompts_beside_it() -> None:
    """Left padding is invisible: one prompt at a time gives the same continuations."""
    pack = random_pack(configs_of(["lora", "dora"]), [0, 1])
    together, single = (Scorer(pack.scored, size, PAD).generate(ITEMS, EOS, NEW_TOKENS) for size in (len(ITEMS), 1))
    assert together == single
    assert {len(answer) for answers in together for answer in answers} & {NEW_TOKENS}


def test_an_evaluation_changes_nothing() -> None:
    """Of the training that follows, to the bit, also where bitsandbytes keeps state of its own."""
    for variant in ("qdora", "lora_8bit"):
        configs = configs_of([variant, variant])
        plain, interrupted = pack_of(configs, steps=4), pack_of(configs, steps=4)
        for step in range(4):
            Scorer(interrupted.scored, 4, PAD).losses(ITEMS[:3])
            assert plain.advance(step, step + 1) == interrupted.advance(step, step + 1)
        Scorer(interrupted.scored, 4, PAD).generate(ITEMS[:2], EOS, 2)
        assert all(torch.equal(tensor, interrupted.state(1)[name]) for name, tensor in plain.state(1).items())


def test_the_mean_loss_of_a_step_is_what_evaluation_gives_for_its_rows() -> None:
    """Training's head and feed against evaluation's, on the rows of step 0."""
    config = config_of("dora", "train.batch_size=8")
    pack = pack_of([config], items=ITEMS[:8])  # one step is one epoch
    losses = Scorer(pack.scored, 3, PAD).losses(ITEMS[:8])[0]
    (step,) = pack.advance(0, 1)
    assert step.loss[0] == pytest.approx(sum(x.nats for x in losses) / sum(x.tokens for x in losses), abs=LOGITS)
    assert step.tokens == [sum(len(item) for item in ITEMS[:8])]
