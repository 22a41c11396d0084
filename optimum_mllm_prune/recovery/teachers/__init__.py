"""Teachers: the unpruned model in memory, or what it said beforehand."""
