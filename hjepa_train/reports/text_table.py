"""Tables to show: made once, as strings; a terminal, Markdown and a page then say the same."""

from dataclasses import dataclass
from typing import Any, final

from rich.table import Table
from rich.text import Text

NOTHING = "–"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A table to show: strings only, numbers already formatted."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """A sentence below the table."""


def as_rich(sheet: Sheet) -> Table:
    """The sheet for a terminal."""
    table = Table(title=Text(sheet.title), caption=Text(sheet.note) if sheet.note else None, title_justify="left")
    for index, column in enumerate(sheet.columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right")
    for row in sheet.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def as_markdown(sheet: Sheet) -> str:
    lines = [f"**{sheet.title}**", ""]
    if sheet.rows:
        rule = ["---" if index == 0 else "---:" for index in range(len(sheet.columns))]
        for row in (sheet.columns, rule, *sheet.rows):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        lines.append("")
    if sheet.note:
        lines.append(sheet.note)
    return "\n".join(lines).rstrip("\n")


def number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.2f}%"


def count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NOTHING if value is None else str(value)
