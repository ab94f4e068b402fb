"""The paper's numbers, by numpy and scipy alone."""
