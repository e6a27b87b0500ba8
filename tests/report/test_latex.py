"""LaTeX of the tables: structure, escaping, and a real compiler where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_transfer.report.cells import Column, Table
from sparse_transfer.report.latex import ROWS_OF_A_PAGE, escape, latex
from sparse_transfer.report.write import build

COLUMNS = (
    Column("method", "method & more"),
    Column("mor", "increase, %", "change"),
    Column("time", "speedup", "ratio"),
)


def table(rows: int = 2) -> Table:
    frame = pd.DataFrame(
        {
            "method": ["gmp_star", "100% {odd} \\ $name$ #1 ~^"] * (rows // 2),
            "mor": [-0.012, 0.5] * (rows // 2),
            "mor_low": [-0.034, float("nan")] * (rows // 2),
            "mor_high": [0.01, float("nan")] * (rows // 2),
            "time": [1.5, float("nan")] * (rows // 2),
        }
    )
    return Table("made", "Cost", frame, COLUMNS, "Brackets: 95 % interval.", ("A_note",), "n × 2")


def test_a_short_table_is_written_as_worked_out_by_hand():
    assert latex(table()).splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\caption{Cost. Brackets: 95 \% interval.}",
        r"\label{tab:made}",
        r"\begin{tabular}{@{}lrr@{}}",
        r"\toprule",
        r"method \& more & increase, \% & speedup \\",
        r"\midrule",
        r"gmp\_star & $-$1.2 [$-$3.4, +1.0] & 1.50$\times$ \\",
        r"100\% \{odd\} \textbackslash{} \$name\$ \#1 \textasciitilde{}\textasciicircum{}"
        r" & +50.0 &  \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize A\_note",
        r"\par\smallskip\footnotesize Held fixed: n $\times$ 2",
        r"\end{table}",
    ]


def test_a_long_table_runs_over_pages_and_repeats_its_heading():
    text = latex(table(ROWS_OF_A_PAGE + 2))
    assert text.count(r"method \& more") == 2
    assert text.index(r"\endfirsthead") < text.index(r"\endhead") < text.index(r"\endfoot")
    assert text.count("gmp\\_star") == ROWS_OF_A_PAGE // 2 + 1
    assert "\\begin{table}" not in text


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"])))
def test_escaped_text_has_no_active_character(text):
    plain = re.sub(r"\\(text\w+\{\}|[{}$&%#_])", "", escape(text))
    plain = re.sub(r"\$(-|\^\d|\\\w+)\$|\\dots\{\}", "", plain)
    assert not set(plain.replace("~", "")) & set("\\{}$&%#_^"), plain


def test_greek_letters_and_powers_are_mathematics():
    assert escape("χ²(3), ρ, κ ≈ Σ√n") == (
        r"$\chi$$^2$(3), $\rho$, $\kappa$ $\approx$ $\Sigma$$\surd$n"
    )
    assert escape("ςσω Ω") == r"$\varsigma$$\sigma$$\omega$ $\Omega$"


def test_every_table_of_a_report_is_ascii(study):
    made = build(study.frame, study.bench, study.facts, study.predictions)
    assert {"friedman", "intervals", "agreement"} <= {t.name.partition("-")[0] for t in made.tables}
    for one in made.tables:
        assert latex(one).isascii(), one.name


def test_every_table_of_a_report_is_well_formed(study):
    for one in build(study.frame, study.bench, study.facts, None).tables:
        text = latex(one)
        lines = text.splitlines()
        opened = re.findall(r"\\begin\{(\w+)\}", text)
        assert opened == re.findall(r"\\end\{(\w+)\}", text)[::-1]
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert text.count(r"\toprule") == text.count(r"\midrule") == 1 + ("longtable" in opened)
        rows = [re.sub(r"\\&", "", line) for line in lines if line.endswith(r" \\")]
        rows = [row for row in rows if not row.startswith(r"\caption")]
        assert {row.count("&") for row in rows} == {len(one.columns) - 1}
        assert len(rows) == len(one.rows) + 1 + ("longtable" in opened)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex is installed")
def test_it_compiles(study, tmp_path):
    tables = build(study.frame, study.bench, study.facts, None).tables
    body = "\n".join(map(latex, [table(), *tables]))
    (tmp_path / "all.tex").write_text(
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,longtable,textcomp}"
        rf"\begin{{document}}{body}\end{{document}}",
        encoding="utf-8",
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
