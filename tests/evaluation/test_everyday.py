"""The prompts of newcomers: as many as were announced, each once, and choices that tell nothing."""

from __future__ import annotations

from collections import Counter

from fewstep.evaluation.everyday import CHOICES, COLOURED, COUNTS, EVERYDAY, PAIRS, blind_choices
from fewstep.train.bundled.sprite_pictures import COLOURS


def test_sixty_everyday_and_thirty_six_composed_prompts() -> None:
    texts = [*(p.text for p in EVERYDAY), *(p.text for p in COLOURED), *PAIRS, *COUNTS]
    assert (len(EVERYDAY), len(COLOURED), len(PAIRS) + len(COUNTS)) == (60, 24, 12)
    assert max(Counter(texts).values()) == 1
    assert all(prompt.labels for prompt in (*EVERYDAY, *COLOURED))
    assert {prompt.colour for prompt in COLOURED} <= set(COLOURS)


def test_coloured_prompts_read_as_english() -> None:
    assert {p.text for p in COLOURED} >= {"a blue cat", "an orange robot"}


def test_blind_choices_hold_the_prompt_at_any_place() -> None:
    places = Counter[int]()
    for number, prompt in enumerate(EVERYDAY):
        choices = blind_choices(number)
        assert len(set(choices)) == CHOICES
        places[choices.index(prompt.text)] += 1
        assert choices == blind_choices(number)
    assert set(places) == set(range(CHOICES))
