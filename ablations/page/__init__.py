"""The page of a study: one self-contained HTML file with the answer, figures and pictures, and its tables."""
