"""timm: plain weights under timm's names, with the input transform of timm's default weights."""

from sparse_transfer.imports.layout import Layout, as_it_is, unmarked

LAYOUT = Layout(marks=unmarked, translate=as_it_is, precedence=4)
