"""The ledger of "The Illusion of Diminishing Returns" (Sinha et al. 2025, arXiv 2509.09677): a dictionary of words and a running sum.

The reference generator: a seeded draw of distinct five-letter words, one uniform value in [-99, 99] each, and keys drawn with
replacement. The words here are pronounceable and made up, so that no word list is needed.
"""

from __future__ import annotations

import random
from itertools import product

VALUES = 99
WORDS = tuple("".join(letters) for letters in product("bdfgklmnprst", "aeiou", "bdfgklmnprst", "ae", "lnrst"))


def dictionary(words: int, seed: int) -> dict[str, int]:
    """`words` distinct five-letter words with values uniform on [-99, 99]."""
    draw = random.Random(seed)
    return {word: draw.randint(-VALUES, VALUES) for word in draw.sample(WORDS, words)}


def keys(words: dict[str, int], steps: int, seed: int) -> list[str]:
    """`steps` words to add, drawn with replacement."""
    return random.Random(f"keys {seed}").choices(list(words), k=steps)
