"""What a prompt says before any encoder sees it: words, weights, windows. No torch is imported.

Syntax: `(words:1.2)` weighs a part, nested weights multiply, `\\(` and `\\)` are literal brackets.
Brackets without a number are text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from fewstep import values
from fewstep.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 77  # tokens that CLIP reads at once (Radford et al. 2021, arXiv:2103.00020, sec. 2.4)
WINDOW_TOKENS = WINDOW - 2  # of them the prompt's own, between the signs of begin and end
MAX_WEIGHT = 2.0  # weights above give noise (compel's documentation: "values >1.6 tend to produce garbage")

# A bracket, or one that is literal; a closing one with the weight before it, where there is one.
_BRACKET = re.compile(r"\\[()]|\(|(?::\s*+([+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++))\s*+)?\)")
_WORD = re.compile(r"\S")
# Syntax of AUTOMATIC1111 and ComfyUI that names files, or joins prompts.
_FOREIGN = re.compile(
    r"<(?:lora|lyco):(?P<lora>[^<>:]{1,100})(?::[^<>]{0,40})?>|<hypernet:(?P<hypernet>[^<>:]{1,100})[^<>]{0,40}>"
    r"|\bembedding:(?P<embedding>[\w./\\-]{1,100})|\b(?P<joint>BREAK|AND)\b"
)
_FOREIGN_ADVICE = {
    "lora": "{0!r} is read as words here: give the LoRA's file as loras=, for example "
    "loras=[('{1}.safetensors', 0.8)]",
    "hypernet": "{0!r} is read as words here: hypernetworks cannot be loaded; leave it out",
    "embedding": "{0!r} is read as words here: give its file as embeddings=, and write the word alone, {1}",
    "joint": "{0} is read as a word here: leave it out; long prompts are read whole, 75 tokens at a time",
}
_RECORDED = re.compile(r"(?s:.*)<embedding [0-9a-f]{8}>")


class Prompt(NamedTuple):
    """What one picture is told: the text for each encoder."""

    first: str
    second: str

    @property
    def name(self) -> str:
        """How a request records it."""
        return self.first


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """A prompt that is encoded already; `Engine.embed` makes one, and any of this shape will do."""

    tokens: Tensor = field(repr=False)  # (77 k, C): both encoders' penultimate layers, k windows
    pooled: Tensor = field(repr=False)  # (P,): the second encoder's summary
    text: str = ""  # what it says, where that is known

    @property
    def name(self) -> str:
        """How a request records it: the text may not be all that it is, since tensors can be changed."""
        tensors = (part for part in (self.tokens, self.pooled) if part is not None)  # a fake has none
        parts = (part.detach().cpu().float().numpy().tobytes() for part in tensors)
        return f"{self.text} <embedding {hashlib.sha256(b''.join(parts)).hexdigest()[:8]}>".lstrip()


@dataclass(frozen=True)
class Fragment:
    """A stretch of a prompt under one weight."""

    text: str
    weight: float


def parse_fragments(prompt: str) -> tuple[Fragment, ...]:
    """The prompt by weights, neighbours of equal weight joined; `RequestError` for a weight out of range."""
    pieces = (piece for piece in _split_at_brackets(prompt) if piece.text)
    stretches = groupby(pieces, key=lambda piece: piece.weight)
    return tuple(Fragment("".join(piece.text for piece in run), weight) for weight, run in stretches)


def _split_at_brackets(prompt: str) -> Iterator[Fragment]:
    """The text between brackets that weigh, and the literal brackets, each under its weight."""
    brackets = list(_BRACKET.finditer(prompt))
    weights = _bracket_weights(prompt, brackets)
    current, end = [1.0], 0
    for bracket in brackets:
        yield Fragment(prompt[end : bracket.start()], current[-1])
        end = bracket.end()
        if bracket.start() not in weights:
            yield Fragment(bracket[0].removeprefix("\\"), current[-1])
        elif bracket[0] == "(":
            current.append(current[-1] * weights[bracket.start()])
            if current[-1] > MAX_WEIGHT:
                raise RequestError(
                    f"nested weights in {prompt!r} multiply to {current[-1]:g}: at most {MAX_WEIGHT:g}; "
                    "choose smaller ones"
                )
        else:
            current.pop()
    yield Fragment(prompt[end:], 1.0)


def _bracket_weights(prompt: str, brackets: Sequence[re.Match[str]]) -> dict[int, float]:
    """Where brackets that weigh open and close → their weight."""
    weights: dict[int, float] = {}
    opened: list[re.Match[str]] = []
    for bracket in brackets:
        if bracket[0] == "(":
            opened.append(bracket)
        elif bracket[0][0] != "\\" and opened:
            first = opened.pop()
            if bracket[1] is None or not _WORD.search(prompt, first.end(), bracket.start()):
                continue
            weight = float(bracket[1])
            if not 0 <= weight <= MAX_WEIGHT:
                piece = prompt[first.start() : bracket.end()]
                raise RequestError(
                    f"the weight {bracket[1]} in {piece!r} is not from 0 to {MAX_WEIGHT:g}: choose another, "
                    r"or write \( and \) for literal brackets"
                )
            weights[first.start()] = weights[bracket.start()] = weight
    return weights


def parse_prompts(prompt: object, second: object) -> tuple[Prompt | Embedding, ...]:
    """Return what each of `prompt` and `prompt_2` says, checked; `second` None is the same again."""
    allowed = "a string or a non-empty list of strings; an Embedding may stand for any"
    firsts = _as_tuple("prompt", prompt, (str, Embedding), allowed)
    seconds = firsts
    if second is not None:
        seconds = _as_tuple("prompt_2", second, (str,), "a string, or a list as long as prompt")
        seconds *= len(firsts) if isinstance(second, str) else 1
        if len(seconds) != len(firsts):
            raise RequestError(
                f"prompt_2 lists {len(seconds)} for {len(firsts)} of prompt: give as many, or one"
            )
        if any(isinstance(text, Embedding) for text in firsts):
            raise RequestError("prompt_2 cannot act beside an Embedding, which has it in it: leave it out")
    pairs = zip(firsts, seconds, strict=True)
    return tuple(
        text if isinstance(text, Embedding) else checked_prompt(text, text_2) for text, text_2 in pairs
    )


def parse_negative_prompt(negative: object) -> Prompt | Embedding:
    """`negative_prompt` as given, checked."""
    if not isinstance(negative, str | Embedding):
        raise RequestError(f"negative_prompt={values.shown(negative)}: give a string or an Embedding")
    if isinstance(negative, Embedding):
        return negative
    words = str.__str__(negative)  # of a class of its own, too
    return checked_prompt(words, words)


def checked_prompt(first: str, second: str) -> Prompt:
    """A pair of texts, their weights checked: in range, and the extra that applies them is there."""
    for text in (first, second):
        if _RECORDED.fullmatch(text):
            raise RequestError(f"{text!r} is how an Embedding is recorded: give that Embedding as the prompt")
        if ")" in text and has_weights(text) and find_spec("compel") is None:
            raise RequestError(
                f"{text!r} has weights, which compel applies: pip install 'fewstep[prompt]', "
                r"or write \( and \) for literal brackets"
            )
    return Prompt(first, second)


def _as_tuple(name: str, value: object, kinds: tuple[type, ...], allowed: str) -> tuple[Any, ...]:
    """One or several of `kinds` → a tuple of them."""
    several = [value] if isinstance(value, kinds) else values.members(value)
    if not several:
        raise RequestError(f"{name}={values.shown(value)}: give {allowed}")
    for place, entry in enumerate(several):
        if not isinstance(entry, kinds):
            where = (
                f"{name} has {values.shown(entry)} in place {place}"
                if len(several) > 1
                else (f"{name}={values.shown(value)}")
            )
            raise RequestError(f"{where}: give {allowed}")
    return tuple(str.__str__(entry) if isinstance(entry, str) else entry for entry in several)


def foreign_syntax(texts: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each sort of other programs' syntax in prompts, which is read as words here."""
    said = set[str]()
    for text in dict.fromkeys(texts):
        for match in _FOREIGN.finditer(text):
            sort = next(name for name, part in match.groupdict().items() if part)
            shouted = sort == "joint" and text.upper() == text  # a prompt all in capitals
            if sort not in said and not shouted:
                said.add(sort)
                yield _FOREIGN_ADVICE[sort].format(match[0], match[sort])


def has_weights(prompt: str) -> bool:
    """Return whether any part weighs more or less than 1."""
    return any(fragment.weight != 1 for fragment in parse_fragments(prompt))


@dataclass(frozen=True, kw_only=True)
class TokenizedPrompt:
    """A prompt as one tokenizer sees it."""

    fragments: tuple[Fragment, ...]  # those that have tokens
    ids: list[int]
    ends: list[bool]  # is this token the last of a word?
    rest: str  # what does not fit in one window

    @property
    def weighs(self) -> bool:
        return any(fragment.weight != 1 for fragment in self.fragments)

    def refuse(self) -> None:
        """Raise where it does not fit in one window."""
        if self.rest:
            raise RequestError(
                f"the prompt has {len(self.ids)} tokens, {WINDOW_TOKENS} fit, "
                f"and this does not: {self.rest!r}; "
                "shorten it, or give long_prompt='chunk' to have all of it read, 'cut' to have that left out"
            )


def tokenize_prompt(tokenizer: Any, prompt: str) -> TokenizedPrompt:
    """Tokens of a prompt of any length, by a CLIP tokenizer of transformers. Fragments share no token."""
    fragments, words = list[Fragment](), ""
    ids, spans = list[int](), list[tuple[int, int]]()
    for fragment in parse_fragments(prompt):
        encoding = tokenizer(
            fragment.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        fragments += [fragment] if encoding.input_ids else []
        ids += encoding.input_ids
        spans += [(len(words) + start, len(words) + stop) for start, stop in encoding.offset_mapping]
        words += fragment.text
    return TokenizedPrompt(
        fragments=tuple(fragments),
        ids=ids,
        ends=[token.endswith("</w>") for token in tokenizer.convert_ids_to_tokens(ids)],
        rest=_unread_text(words, spans),
    )


def _unread_text(words: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return what follows the tokens that fit. Bytes of one character, vectors of one word, share a span."""
    if len(spans) <= WINDOW_TOKENS:
        return ""
    stops = [stop for start, stop in spans[:WINDOW_TOKENS] if (start, stop) != spans[WINDOW_TOKENS]]
    return words[stops[-1] if stops else 0 :].lstrip()


def split_windows(ends: Sequence[bool], room: int = WINDOW_TOKENS) -> tuple[slice, ...]:
    """Tokens, of which `ends` says what ends a word → stretches of at most `room`, cut at word ends.

    A word longer than that is cut where it must be; no tokens are one empty stretch.
    """
    cuts = [0]
    while len(ends) - cuts[-1] > room:
        start = cuts[-1]
        word_ends = (stop for stop in range(start + room, start, -1) if ends[stop - 1])
        cuts.append(next(word_ends, start + room))
    return tuple(slice(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(ends)], strict=True))
