"""How pictures look: colours that colour-blind readers tell apart, error bars, saving."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from ranking.plumbing.processes import announce
from ranking.plumbing.result_files import written_atomically

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6E6E6E"  # Okabe-Ito: distinct for colour-blind readers
GREEN, PINK = "#009E73", "#CC79A7"
MODEL_COLOURS = (BLUE, ORANGE, GREEN, PINK, "#56B4E9", "#E69F00", "#000000")
MODEL_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SAVE = {"dpi": 200, "bbox_inches": "tight", "metadata": {"Software": None}}
WIDTH = 7.0  # inches of a page's text: what is printed at this width has letters of 7 and 8 points
LOOKS: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "figure.titlesize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "legend.title_fontsize": 7,
    "lines.linewidth": 1.2, "lines.markersize": 4, "pdf.fonttype": 42,
    "axes.grid": True, "grid.alpha": 0.3,
}  # fmt: skip
LOG_REF = r"$\log \pi_{\mathrm{ref}}(%s|x)$"  # of y_w, y_l or y
DISTANCE = r"$\|\theta - \theta_{\mathrm{ref}}\|^2$"
NO_BREAK = "\N{NO-BREAK SPACE}"
WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
LOSS_NEEDED = r"$-\log\,\sigma(\gamma\beta c)$"  # Theorem 4.1


def subplots(*shape: int, **settings) -> tuple[Any, Any]:
    """matplotlib's figure and axes, constrained, without a screen. Imported here: it takes a
    second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(LOOKS)
    return plt.subplots(*shape, layout="constrained", **settings)


def whole_numbers(axis) -> None:
    """Ticks of an axis at whole numbers only: steps."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def wrapped(title: str, inches: float) -> str:
    """A panel's title in lines of its width, broken between words, and not in `(n = …)`; a name
    that is longer, after its slashes, and what is longer still, after `_`, `-` and `.`."""
    width = int(17 * inches)
    kept = re.sub(r"\(n = [^)]*\)", lambda size: size[0].replace(" ", NO_BREAK), title)
    for marks in ("/", "_.-"):
        kept = re.sub(rf"\S{{{width + 1},}}", partial(broken_after, marks, width), kept)
    return "\n".join(fill(line, width, **WHOLE) for line in kept.split("\n")).replace(NO_BREAK, " ")


def broken_after(marks: str, width: int, name: re.Match) -> str:
    """A name in lines that end with one of the marks."""
    lines = fill(re.sub(rf"([{marks}])", r"\1 ", name[0]), width, **WHOLE)
    return re.sub(rf"([{marks}]) ", r"\1", lines)


def model_style(number: int) -> dict[str, str]:
    """Colour and marker of one of several models: 49 are told apart."""
    return {
        "color": MODEL_COLOURS[number % 7],
        "marker": MODEL_MARKERS[(number + number // 7) % 7],
    }


def percents(values: Sequence[float], intervals: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Shares in percent, and the lengths of their error bars: (n,) and (2, n).

    intervals: (n, 2), None where there is none: no bar.
    """
    x = 100 * np.array(values, dtype=float)
    bounds = 100 * np.array(intervals, dtype=float).reshape(-1, 2).T
    bars = np.array([x - bounds[0], bounds[1] - x])
    return x, np.maximum(0, np.nan_to_num(bars))


def draw(plot, rows: Sequence, path: Path) -> bool:
    """Draw a picture beside results; where it cannot be drawn, a line says so, and they stay.
    Whether it was."""
    try:
        plot(rows, path)
    except ValueError as error:
        announce(f"no picture {path}: {str(error).splitlines()[0]}")
        return False
    return True


def save_figure(figure, path: Path, caption: str = "", ncols: int = 0, **legend) -> None:
    """Write a figure whole or not at all, and close it.

    caption: what it is of, above it, in lines of its width. ncols: of one legend below all panels,
    with each label of any of them once; `legend`: as matplotlib takes it.
    """
    import matplotlib.pyplot as plt

    if caption:
        lines = fill(caption, int(17 * figure.get_figwidth()))
        figure.suptitle(lines, fontsize=7, color="#404040")
    if ncols:
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels()):
                handles.setdefault(label, handle)
        place = "outside lower center"
        figure.legend(handles.values(), handles, loc=place, ncols=ncols, **legend)
    how = SAVE if path.suffix == ".png" else {"bbox_inches": "tight"}
    with written_atomically(path) as file:
        figure.savefig(file, format=path.suffix[1:], **how)
    plt.close(figure)
