"""Texts in which what is trained on is marked by hand."""


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without its ⟦ ⟧ marks, and the spans they enclose."""
    plain, spans = "", []
    for piece in text.split("⟦"):
        inside, closed, rest = piece.partition("⟧")
        if closed:
            spans.append((len(plain), len(plain) + len(inside)))
        plain += inside + rest
    return plain, spans
