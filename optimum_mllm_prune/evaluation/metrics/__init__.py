"""How good answers are: one file a metric, each an `evaluate.Metric` that needs no network.

A metric gives every row's contribution and turns their sums into its value, so that bootstrap and paired tests
(`..statistics`) work alike for means, F1 and perplexity. A new metric is one file and one entry here.
"""

from .anls import Anls
from .answer_perplexity import AnswerPerplexity
from .exact_match import ExactMatch
from .relaxed_accuracy import RelaxedAccuracy
from .row_metric import RowMetric
from .token_agreement import TokenAgreement
from .vqa_accuracy import VqaAccuracy
from .yes_no_f1 import YesNoF1


METRICS: dict[str, type[RowMetric]] = {
    metric.name: metric
    for metric in (ExactMatch, VqaAccuracy, YesNoF1, Anls, RelaxedAccuracy, AnswerPerplexity, TokenAgreement)
}

__all__ = ["METRICS", "RowMetric"]
