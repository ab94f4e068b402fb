"""What stands between a prompt and its completion, and prompts that completions repeat."""

import re
from collections.abc import Callable, Sequence

from ranking.data.cells import Dropped, Reading

# after which nothing is put: HH's, and the special tokens of chat templates
TURN_MARKER = re.compile(r"(?:(?:\A|\n)[^\S\n]*Assistant:|<\|[^\s<>|]+\|>|\[/INST\])\Z")


def separator_between(prompt: str, completion: str) -> str:
    """What joins two texts that were not made to stand side by side: a space, but nothing where
    white space or a turn marker stands already, or the prompt is empty."""
    together = prompt == "" or prompt[-1].isspace() or completion[:1].isspace()
    return "" if together or ends_with_marker(prompt) else " "


def ends_with_marker(prompt: str) -> bool:
    """Whether a prompt ends with a turn marker."""
    return TURN_MARKER.search(prompt[-100:]) is not None


def without_prompt(prompt: str, completion: str) -> str | None:
    """A completion that repeats the prompt, without it; None where it does not, or where the prompt
    would end inside a word."""
    for whole, head in ((completion, prompt), (completion.lstrip(), prompt.strip())):
        rest = whole[len(head) :]
        inside = head[-1:].isalnum() and rest[:1].isalnum()
        if head.strip() and whole.startswith(head) and not inside:
            return rest
    return None


def are_whole_texts(items: Sequence[int], read: Callable[[int], Reading]) -> bool:
    """Whether pairs or lists of text are whole texts: in nine of ten usable ones, every completion
    begins with the prompt. As soon as too many do not, no more are read."""
    usable = repeating = 0
    for index in items:
        if usable - repeating > 0.1 * len(items):
            return False
        try:
            prompt, completions, *_ = read(index)
        except (Dropped, ValueError, RecursionError):
            continue
        if not isinstance(prompt, str) or not completions:
            continue
        if all(text.strip() for text in (prompt, *completions)):
            usable += 1
            repeating += None not in [without_prompt(prompt, text) for text in completions]
    return usable > 0 and repeating >= 0.9 * usable
