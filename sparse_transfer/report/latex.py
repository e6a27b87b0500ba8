"""Tables for a paper: LaTeX with the rules of booktabs, ready for `\\input`.

A table that fits a page floats; a longer one runs over pages (longtable). Text is escaped, so that
a method or task may be called anything.
"""

from __future__ import annotations

import re

from sparse_transfer.report.cells import Column, Table

ROWS_OF_A_PAGE = 40
# Omicron and the capitals that Latin has, too, have no command.
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta",
    "η": "eta", "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu",
    "ξ": "xi", "π": "pi", "ρ": "rho", "ς": "varsigma", "σ": "sigma", "τ": "tau", "υ": "upsilon",
    "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta",
    "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Υ": "Upsilon", "Φ": "Phi", "Ψ": "Psi",
    "Ω": "Omega",
}  # fmt: skip
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"\textperiodcentered{}",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "…": r"\dots{}",
    "–": "--",
    "—": "---",
    "’": "'",
    "½": r"\textonehalf{}",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "√": r"$\surd$",
    "µ": r"$\mu$",
    "²": "$^2$",
    "³": "$^3$",
    "\u00a0": "~",
    "\u2011": "-",
    **{letter: rf"$\{name}$" for letter, name in _GREEK.items()},
}
_ANY_SPECIAL = re.compile("|".join(map(re.escape, _SPECIAL)))


def latex(table: Table) -> str:
    """The table as LaTeX: caption (title and remark), label, rows as shown, notes below.

    Needs the packages booktabs, and longtable where the table is longer than a page.
    """
    body = [_row([cell.plain for cell in row]) for row in table.rows]
    columns = "@{}" + "".join(map(_alignment, table.columns)) + "@{}"
    head = [r"\toprule", _row([column.title for column in table.columns]), r"\midrule"]
    caption = rf"\caption{{{escape(_sentences(table.title, table.remark))}}}"
    label = rf"\label{{tab:{table.name}}}"
    notes = [rf"\par\smallskip\footnotesize {escape(text)}" for text in _notes(table)]
    if len(body) <= ROWS_OF_A_PAGE:
        lines = [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            caption,
            label,
            rf"\begin{{tabular}}{{{columns}}}",
            *head,
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
        ]
    else:
        lines = [
            r"% needs \usepackage{booktabs,longtable}",
            rf"\begin{{longtable}}{{{columns}}}",
            rf"{caption} {label} \\",
            *head,
            r"\endfirsthead",
            *head,
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *body,
            r"\end{longtable}",
            *(rf"{{{text}\par}}" for text in notes),
        ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text as LaTeX sets it literally, in one line."""
    return _ANY_SPECIAL.sub(lambda match: _SPECIAL[match[0]], " ".join(text.splitlines()))


def _row(cells: list[str]) -> str:
    # A bracket at the start of a row would be read as the argument of the row end before it.
    text = " & ".join(escape(cell) for cell in cells)
    return ("{}" if text.startswith(("[", "*")) else "") + text + r" \\"


def _alignment(column: Column) -> str:
    return "r" if column.numeric else "l"


def _notes(table: Table) -> list[str]:
    held = [f"Held fixed: {table.held_fixed}"] if table.held_fixed else []
    return [*table.notes, *held]


def _sentences(*parts: str) -> str:
    return " ".join(part if part.endswith((".", "?")) else f"{part}." for part in parts if part)
