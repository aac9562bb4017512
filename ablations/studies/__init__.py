"""The studies that ship with the project; importing this package registers them."""

from ablations.studies import degradation as degradation
from ablations.studies import extractors as extractors
from ablations.studies import fusion as fusion
from ablations.studies import prior_selection as prior_selection
from ablations.studies import sampling as sampling
from ablations.studies import semantics as semantics
