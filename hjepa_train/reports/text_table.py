"""Tables to show: made once, as strings; a terminal, Markdown and a page then say the same."""

from dataclasses import dataclass
from typing import Any, final

from rich.table import Table
from rich.text import Text

NOTHING = "–"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """A table to show: strings only, numbers already formatted."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """A sentence below the table."""


def as_rich(table: TextTable) -> Table:
    """The table for a terminal."""
    shown = Table(title=Text(table.title), caption=Text(table.note) if table.note else None, title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="left" if index == 0 else "right")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def as_markdown(table: TextTable) -> str:
    lines = [f"**{table.title}**", ""]
    if table.rows:
        rule = ["---" if index == 0 else "---:" for index in range(len(table.columns))]
        for row in (table.columns, rule, *table.rows):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        lines.append("")
    if table.note:
        lines.append(table.note)
    return "\n".join(lines).rstrip("\n")


def number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.2f}%"


def count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NOTHING if value is None else str(value)
