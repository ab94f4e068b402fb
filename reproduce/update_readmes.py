"""Write the result tables of the READMEs anew from the result files.

    python -m reproduce.update_readmes

A block `<!-- tables.py ARGUMENTS -->` … `<!-- end -->` gets what `reproduce/tables.py ARGUMENTS`
prints; patterns such as reproduce/results/ranking/*.jsonl are expanded, in alphabetical order.
"""

import argparse
import contextlib
import io
import re
import shlex
from pathlib import Path

from ranking.plumbing.command_line import make_parser, run_script
from ranking.plumbing.result_files import write_text_atomically
from reproduce import tables

ROOT = Path(__file__).parents[1]
READMES = ("reproduce/README.md", "reproduce/results/README.md")
BLOCK = re.compile(r"(<!-- tables\.py (.*?) -->\n).*?(<!-- end -->)", re.S)


def table_text(arguments: str) -> str:
    """What tables.py prints for the arguments of a block."""
    words = []
    for word in shlex.split(arguments):
        found = (
            sorted(str(file.relative_to(ROOT)) for file in ROOT.glob(word)) if "*" in word else []
        )
        if "*" in word and not found:
            raise ValueError(f"{word}: no such result files")
        words += found or [word]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.chdir(ROOT):
        tables.main(tables.parse_args(words))
    return out.getvalue()


def updated(text: str) -> str:
    """A README's text with every block made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{table_text(block[2])}{block[3]}", text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return make_parser(__doc__).parse_args(argv)


def main(args: argparse.Namespace) -> None:
    for name in READMES:
        path = ROOT / name
        write_text_atomically(path, updated(path.read_text(encoding="utf-8")))
        print(name)


if __name__ == "__main__":
    run_script(main, parse_args())
