"""Making the world of the shipped networks: its photographs, its teachers, and the recipes that train on them."""
