"""How numbers are taken: versioned protocols and the evaluator that applies them."""
