"""What the words and the image mean: text and image tokens."""
