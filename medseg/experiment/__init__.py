"""Few-shot experiments: which method on which subset, and what the differences are worth."""
