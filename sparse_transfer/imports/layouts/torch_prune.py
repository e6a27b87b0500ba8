"""torch.nn.utils.prune: pairs of `weight_orig` and `weight_mask`, any architecture's own names.

Marks: such a pair. The imported weight is the product of the two.
"""

from sparse_transfer.imports.layout import Layout, as_it_is, ends

ALIAS = "torch-prune"

LAYOUT = Layout(
    marks=lambda stored: ends(stored, r"\.weight_orig"),
    translate=as_it_is,
    precedence=3,
)
