"""The comparison page: one self-contained HTML file with scores, pictures, a divider and linked crops."""
