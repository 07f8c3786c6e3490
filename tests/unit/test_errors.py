"""Errors: one line with what, expected, found and the next step."""

from __future__ import annotations

import inspect

import pytest

from workflow import errors
from workflow.errors import DataError, MarqueeError


def test_the_whole_line() -> None:
    error = DataError(
        "column age is text.", expected="numbers", found='"abc"\nin row 7', next_step="correct it"
    )
    assert str(error) == (
        'column age is text. Expected: numbers. Found: "abc" in row 7. Next: correct it.'
    )
    assert (error.what, error.expected, error.next_step) == (
        "column age is text.", "numbers", "correct it",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "no such thing."),
        ({"found": "nothing."}, "no such thing. Found: nothing."),
        ({"next_step": "marquee run"}, "no such thing. Next: marquee run."),
        ({"expected": "", "found": None}, "no such thing."),
    ],
)
def test_absent_parts_are_left_out(options: dict[str, str | None], line: str) -> None:
    assert str(MarqueeError("no such thing", **options)) == line


def test_the_tree_in_the_docstring_is_complete() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    drawn = {word for word in (errors.__doc__ or "").split() if word.endswith("Error")}
    assert drawn == classes
    for name in classes:
        assert issubclass(getattr(errors, name), MarqueeError)
