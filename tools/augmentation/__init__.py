"""What generated cases bring: experiments, paired differences, one table."""
