"""Tables in notebooks: the rows that a table prints, as plain HTML."""

from collections.abc import Collection, Sequence
from html import escape


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = ()) -> str:
    """A table as HTML without colours, which the notebook's own style then gives.

    Args:
        head: Names of the columns.
        rows: Texts of the cells; the last cell of a short row is as wide as what is missing.
        numbers: Columns to align to the right.

    >>> print(html_table(["name", "size"], [["a<b", "3"]], numbers=[1]))
    <table><thead><tr><th style="text-align: left">name</th><th style="text-align: right">size</th></tr></thead>
    <tbody><tr><td style="text-align: left">a&lt;b</td><td style="text-align: right">3</td></tr></tbody></table>
    """

    def line(tag: str, row: Sequence[str]) -> str:
        cells = []
        for i, text in enumerate(row):
            wide = f' colspan="{len(head) - i}"' if i == len(row) - 1 and len(row) < len(head) else ""
            side = "right" if i in numbers and not wide else "left"
            cells.append(f'<{tag} style="text-align: {side}"{wide}>{escape(text)}</{tag}>')
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', head)}</thead>\n<tbody>{body}</tbody></table>"


def html_lines(*lines: str) -> str:
    """A paragraph for each line.

    >>> html_lines("a < b", "c")
    '<p>a &lt; b</p><p>c</p>'
    """
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
