"""What a command prints: words on standard error, results or one JSON object on standard output."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

# Called by a stage as report(done, total, note); total 0 means "not known".
Report = Callable[[float, float, str], None]


PIPED_WIDTH = 110  # columns of a table that is not shown on a terminal


def no_report(done: float, total: float, note: str = "") -> None:
    """A Report that says nothing."""


class Output:
    """Where a verb writes. With `as_json`, words go to standard error and one object to stdout."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.words = Console(stderr=True, highlight=False, soft_wrap=True)
        self.results = self.words if as_json else Console(highlight=False, soft_wrap=True)
        for console in (self.words, self.results):
            if not console.is_terminal:
                console.width = PIPED_WIDTH

    def say(self, text: str) -> None:
        self.words.print(text)

    def show(self, text: str) -> None:
        """A line of the result for people; silent with --json."""
        if not self.as_json:
            self.results.print(text)

    @contextmanager
    def stage(self, title: str) -> Iterator[Report]:
        """A progress line for one stage; a plain line per stage when not on a terminal."""
        started = time.monotonic()
        if not self.words.is_terminal:
            self.words.print(f"• {title} …")
            yield self._note_changes()
            self.words.print(f"✓ {title} {time.monotonic() - started:.1f} s")
            return
        with _progress(self.words) as progress:
            task = progress.add_task(title, total=None, note="")

            def report(done: float, total: float, note: str = "") -> None:
                progress.update(task, completed=done, total=total or None, note=note)

            yield report
        self.words.print(f"[green]✓[/] {title} [dim]{time.monotonic() - started:.1f} s[/]")

    def _note_changes(self) -> Report:
        """A Report for logs: one line whenever the stage comes to something new."""
        last = ""

        def report(done: float, total: float, note: str = "") -> None:
            nonlocal last
            if note and note != last:
                self.words.print(f"  {escape(note)}")
                last = note

        return report

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table for people; silent with --json."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self.results.print(table)

    def finish(self, result: dict[str, Any], made: str = "", next_step: str = "") -> None:
        """End a verb: the JSON object, or what was made and what to do next."""
        if self.as_json:
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()
            return
        if made:
            self.results.print(made)
        if next_step:
            self.results.print(f"Next: [bold]{next_step}[/]")


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        transient=True,
    )


class CtrlC:
    """Remembers that it came: C code may answer KeyboardInterrupt with an error of its own."""

    def __init__(self) -> None:
        self.came = False
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.default_int_handler(number, frame)
