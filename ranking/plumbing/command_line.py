"""How a script starts and stops: flags, one-line errors, progress, Ctrl-C and SIGTERM.

Exit codes: 0 done, 2 an error that one line explains, 130 interrupted (Ctrl-C), 143 told to end
(SIGTERM), 129 its terminal closed (SIGHUP), 141 nobody reads on what it prints (`| head`). A stop
lets the batch at hand finish and be written; a second one stops at once.
"""

import argparse
import difflib
import io
import logging
import os
import re
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn, TypeVar

from ranking.plumbing.outputs import release_outputs
from ranking.plumbing.processes import (
    announce,
    explain_single_process,
    local_rank,
    process_count,
    process_rank,
)

Item = TypeVar("Item")
WAIT = 10.0  # seconds that a process gives another one to print the error of both
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the description as it stands, and behind each flag its default, where there is one that
    its help does not say."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        unsaid = default is None or default is False or default in (argparse.SUPPRESS, [])
        if unsaid or "default" in text.lower():
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """Errors are one line; an unknown flag names the nearest known one."""

    given: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):
        self.given = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        if self.description:  # which shows how to call it
            self.usage = argparse.SUPPRESS
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        flags = [word.split("=")[0] for word in self.given if word.startswith("--")]
        unknown = [flag for flag in flags if flag not in self._option_string_actions]
        message = re.sub(r"^argument (-\S+): (?=[^:]*: give )", r"\1 ", message)
        if message.startswith("unrecognized arguments: "):
            stray = (message.removeprefix("unrecognized arguments: ").split() or ['""'])[0]
            unknown += [stray] if stray.startswith("-") else []
            message = self.explain_stray(stray)
        if unknown:  # said before what is missing, which may be what was meant
            close = suggestion(unknown[0], self._option_string_actions)
            message = f"unknown flag {unknown[0]}{close}"
        print(f"error: {message} ({self.prog} --help shows all flags)", file=sys.stderr)
        sys.exit(2)

    def explain_stray(self, word: str) -> str:
        """What is said of a word that is no flag's value; it names the flag before."""
        before = self.given[: self.given.index(word)] if word in self.given else []
        flag = next((w.partition("=")[0] for w in reversed(before) if w.startswith("--")), "")
        action = self._option_string_actions.get(flag)
        if action is None:
            return f"{word}: give flags, as --name value"
        again = isinstance(action, argparse._AppendAction)
        hint = f"; give it again for another, as in {flag} A {flag} B" if again else ""
        return f"{word} after {flag}: it takes {'no' if action.nargs == 0 else 'one'} value{hint}"


def suggestion(flag: str, known: Iterable[str]) -> str:
    """The nearest known flag as a question that ends the message, or nothing."""
    close = difflib.get_close_matches(flag, list(known), 1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def checked(kind: Callable, holds: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    """An argparse type: a number that `holds`; its error says to give `what`."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"{text}: give {what}")
        return value

    return convert


positive_int = checked(int, lambda n: n >= 1, "a positive number")
count = checked(int, lambda n: n >= 0, "0 or more")


def sample_size(text: str) -> int | None:
    """An argparse type: how many examples; -1 is all, None."""
    n = checked(int, lambda n: n >= 1 or n == -1, "a positive number, or -1 for all")(text)
    return None if n == -1 else n


def make_parser(description: str | None) -> Parser:
    """A parser that shows `description` (the script's docstring) as it stands."""
    print_any_text()
    return Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def print_any_text() -> None:
    """Where the terminal's encoding lacks a character, it is printed as `?`, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


class Stopped(KeyboardInterrupt):
    """Raised by a signal: at once, or when the batch at hand is done. `saved`: what is on disk."""

    def __init__(self, number: int, saved: str = ""):
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.saved = saved


_deferred = 0  # how many blocks that finish their batch first are being run
_requested: int | None = None  # the signal that waits for the end of a batch


def _handle(number: int, frame) -> None:
    global _requested
    if _deferred and _requested is None:
        _requested = number
        announce(f"{signal.Signals(number).name}: finishing the batch at hand; again to stop now")
        return
    raise Stopped(number)


def stop_requested() -> int | None:
    """The signal that waits for the end of the batch, or None."""
    return _requested


@contextmanager
def finishing_first() -> Iterator[None]:
    """Inside, the first signal is only noted (`stop_requested`); the second one stops at once."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1


def until_stopped(batches: Iterable[Item], saved: Callable[[], str]) -> Iterator[Item]:
    """The batches; after a signal, the one at hand is handed over and used before `Stopped` is
    raised with what `saved` says then."""
    with finishing_first():
        for batch in batches:
            yield batch
            if _requested is not None:
                raise Stopped(_requested, saved())


def with_underscores(message: str) -> str:
    """A message that names flags as the training scripts spell them: --chat_template_file."""
    return re.sub(r"(?<![\w-])--\w+(-\w+)+", lambda m: "--" + m[0][2:].replace("-", "_"), message)


def nobody_reads() -> bool:
    """Whether what reads this process's output has gone."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def explaining_errors(
    spelled: Callable[[str], str] = str, same_everywhere: bool = False
) -> Iterator[None]:
    """Inside, an expected failure ends the script with one line and exit code 2.

    spelled: what makes of the message the line. same_everywhere: all processes fail alike; the
    first of a machine says so, and torchrun then ends the others, which wait for it.
    """
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        logging.debug("details", exc_info=True)
        if isinstance(error, BrokenPipeError) and nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be flushed
            sys.exit(128 + signal.SIGPIPE)
        if same_everywhere and local_rank() > 0:
            time.sleep(WAIT)
        is_one = process_count() == 1 or (same_everywhere and local_rank() == 0)
        where = "" if is_one else f" (process {process_rank() + 1})"
        print(f"error{where}: {spelled(str(error))}", file=sys.stderr)
        sys.exit(2)


def import_trainer_quietly() -> None:
    """transformers' Trainer: its import prints among the results that wandb is offline, where
    WANDB_MODE says so, also where nothing is reported to wandb."""
    with redirect_stdout(io.StringIO()):
        import transformers.integrations.integration_utils  # noqa: F401


def run_script(main_function, arguments, spelled: Callable[[str], str] = str) -> None:
    """Run a script's main; expected failures and stops become one line and an exit code."""
    global _requested
    _requested = None
    print_any_text()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, to programmers
    explain_single_process()
    logging.basicConfig(
        level=getattr(arguments, "loglevel", "WARNING"), format="%(levelname)s: %(message)s"
    )
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
    heard = [n for n in STOP_SIGNALS if n != signal.SIGHUP or not ignored]
    before = {n: signal.signal(n, _handle) for n in heard}
    try:
        with explaining_errors(spelled):
            main_function(arguments)
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        saved = getattr(stop, "saved", "")
        saved = f"{saved}; " if saved else ""
        announce(f"stopped by {signal.Signals(number).name}: {saved}the same command resumes from "
                 "what is on disk")  # fmt: skip
        others = [t for t in threading.enumerate() if t is not threading.main_thread()]
        if _requested is not None and not saved and not all(t.daemon for t in others):
            sys.stdout.flush()  # asked twice: threads that wait for an answer are left
            os._exit(128 + number)
        sys.exit(128 + number)
    finally:
        release_outputs()
        for number, handler in before.items():
            signal.signal(number, handler)


def progress_bar(text: str, total: int, n_done: int = 0, tokens: bool = False):
    """With rate and time left, in one of several processes; a line every ten seconds where stderr
    is a file. `tokens`: what is counted, in thousands where there are so many."""
    from tqdm import tqdm

    seconds = 1 if sys.stderr.isatty() else 10
    unit = {"unit": "tok", "unit_scale": True} if tokens else {}
    return tqdm(total=total, initial=n_done, desc=text, mininterval=seconds,
                disable=process_rank() > 0, **unit)  # fmt: skip
