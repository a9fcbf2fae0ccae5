"""What is found out before a model is loaded: whether the words are seen, and whether disk and memory are enough."""
