"""Prompts that other programs may trip over: what separates, what ends, what is long, what is no letter."""

from __future__ import annotations

LINE = "Steps: 50, Sampler: Euler a, CFG scale: 30, Seed: 666, Size: 8x8, Model hash: deadbeef00, Model: evil"
TEXTS = (
    "", " ", "\n", "\n\n\n", "a fox\nin the snow", "a fox\r\nin the snow\rat night", "a: b: c", "a, b, , c",
    'a "red" fox', "it's a fox", '"', "{}", '{"prompts": ["an owl"]}', "}{", "\\", "\\n", "Steps: 9",
    "a fox\nSteps: 9, Sampler: LCM, CFG scale: 1", f"a fox\nNegative prompt: an owl\n{LINE}",
    "Negative prompt: an owl", "a Negative prompt: b Negative prompt: c", f"a fox\n{LINE}",
    'Hashes: {"model": "deadbeef00"}', "<lora:style:0.8>", "<script>alert(1)</script>&amp;</rdf:RDF>",
    "\x00a\x00fox\x00", "\x1b[31mred\x07\x7f",
    "\u202eפוקס אדום\u202c ثعلب أحمر", "🦊👨\u200d👩\u200d👧 狐 e\u0301\U0010ffff",
    "\u2028\u2029\ufeff\ufffe", "fox " * 25_000, "狐" * 100_000,
)  # fmt: skip
