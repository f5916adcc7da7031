"""Weights on words, by compel: the only module that imports it. Extra: fewstep[prompt]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import RequestError
from fewstep.prompts import Fragment


@contextmanager
def _hidden_import_notes() -> Iterator[None]:
    """No notes on stderr about parts of transformers that compel imports and nobody here uses."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


with _hidden_import_notes():
    from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType, SplitLongTextMode

_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


def encode_weighted(
    tokenizer: Any,
    encoder: nn.Module,
    fragments: Sequence[Fragment],
    *,
    penultimate: bool,
    cut: bool,
    device: torch.device,
) -> Tensor:
    """Return one encoder's answer to weighted fragments, (77 k, C); with `cut` k is 1.

    `penultimate`: of the last layer but one, or of the last through the final norm.

    Above 1 a token moves away from the empty prompt's; below, towards the prompt without the fragment.
    Windows end where `fewstep.prompts.split_windows` ends them. Fragments without tokens must be left out.
    """
    for sign in (tokenizer.bos_token, tokenizer.eos_token):  # compel takes it for the end of a window
        if any(sign in fragment.text for fragment in fragments):
            raise RequestError(f"{sign!r} cannot stand in a prompt with weights: leave one of them out")
    tokenizer.deprecation_warnings[_TOO_LONG] = True  # it has windows; transformers would log that it is long
    provider = EmbeddingsProvider(
        tokenizer,
        encoder,
        truncate=cut,
        returned_embeddings_type=(
            ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
            if penultimate
            else ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED
        ),
        split_long_text_mode=SplitLongTextMode.WORDS,
    )
    texts, weights = [f.text for f in fragments], [f.weight for f in fragments]
    tokens: Tensor = provider.get_embeddings_for_weighted_prompt_fragments([texts], [weights], device=device)
    return tokens[0].to(device)  # an encoder that waits in RAM pulls its answer there
