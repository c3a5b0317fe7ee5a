"""Tables as aligned text, Markdown and HTML, and the place in a file where a command writes its table."""

import math
from collections.abc import Collection, Sequence
from html import escape


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Header and rows as aligned text: first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([first, *rest]).rstrip()


def number(value: float, form: str) -> str:
    """The number in a format such as `.2f`; a dash for NaN and infinity."""
    return format(value, form) if math.isfinite(value) else "-"


def counted(number: int, what: str) -> str:
    """A number of things in words: 1 row, 2 rows."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Header and rows as a Markdown table, aligned as text is."""
    marks = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *rows))


def html(header: Sequence[str], rows: Sequence[Sequence[str]], bad: Collection[int] = ()) -> str:
    """Header and rows as an HTML table; the rows with the numbers `bad` are of the class `bad`."""
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in header)}</tr>"] if header else []
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f'<tr class="bad">{cells}</tr>' if number in bad else f"<tr>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


END = "<!-- end -->"


def inside(text: str, command: str) -> str:
    """The text between the two marks of a command."""
    return text.split(_start(command))[1].split(END)[0].strip()


def put_into(text: str, command: str, content: str) -> str:
    """The text with `content` between the marks of a command."""
    before, rest = text.split(_start(command))
    return f"{before}{_start(command)}\n{content}\n{END}{rest.split(END, 1)[1]}"


def _start(command: str) -> str:
    return f"<!-- {command} -->"
