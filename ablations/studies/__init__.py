"""The studies that ship with the project; importing this package registers them."""

from ablations.studies import fusion as fusion
from ablations.studies import prior_selection as prior_selection
