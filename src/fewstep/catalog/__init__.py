"""Model files: which there are, and how they become parts in memory."""
