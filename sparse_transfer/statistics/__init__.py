"""Statistics over results: intervals, paired tests, ranks, verdicts, and the comparison tables.

Pure functions over numpy arrays and pandas frames. The unit of replication is the upstream seed;
where there is one checkpoint per method every statement is conditional on it and says so.
"""

from sparse_transfer.statistics.agreement import (
    Agreement,
    ByClass,
    agreement,
    by_class,
    cohen_kappa,
    mcnemar_p,
)
from sparse_transfer.statistics.cells import GROUP, PairedErrors
from sparse_transfer.statistics.comparison import MARGIN, Comparison, LoadPredictions, compare
from sparse_transfer.statistics.contrasts import (
    contrast,
    difficulty,
    difficulty_correlation,
    pooled_sd,
    seed_noise,
    seed_noise_of_mean,
    worse_than_linear,
)
from sparse_transfer.statistics.drift import dense_drift, may_share_ranking
from sparse_transfer.statistics.examples import (
    ExampleBootstrap,
    ExampleErrors,
    bootstrap_errors,
    example_errors,
    paired_bootstrap,
)
from sparse_transfer.statistics.few_shot import few_shot_areas, few_shot_curves
from sparse_transfer.statistics.intervals import (
    Interval,
    bca_interval,
    hierarchical_bootstrap,
    t_interval,
    wilson_interval,
)
from sparse_transfer.statistics.paired_tests import (
    Ranks,
    friedman,
    holm,
    minimum_detectable_effect,
    sign_flip_test,
    tost,
    wilcoxon_test,
)
from sparse_transfer.statistics.relative_error import (
    Aggregates,
    aggregate,
    relative_error_by_seed,
    relative_error_increase,
    signs_agree,
)
from sparse_transfer.statistics.verdicts import CONDITIONAL, Verdict, verdict

__all__ = [
    "CONDITIONAL",
    "GROUP",
    "MARGIN",
    "Aggregates",
    "Agreement",
    "ByClass",
    "Comparison",
    "ExampleBootstrap",
    "ExampleErrors",
    "Interval",
    "LoadPredictions",
    "PairedErrors",
    "Ranks",
    "Verdict",
    "aggregate",
    "agreement",
    "bca_interval",
    "bootstrap_errors",
    "by_class",
    "cohen_kappa",
    "compare",
    "contrast",
    "dense_drift",
    "difficulty",
    "difficulty_correlation",
    "example_errors",
    "few_shot_areas",
    "few_shot_curves",
    "friedman",
    "hierarchical_bootstrap",
    "holm",
    "may_share_ranking",
    "mcnemar_p",
    "minimum_detectable_effect",
    "paired_bootstrap",
    "pooled_sd",
    "relative_error_by_seed",
    "relative_error_increase",
    "seed_noise",
    "seed_noise_of_mean",
    "sign_flip_test",
    "signs_agree",
    "t_interval",
    "tost",
    "verdict",
    "wilcoxon_test",
    "wilson_interval",
    "worse_than_linear",
]
