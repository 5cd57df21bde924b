"""The one room that knows all others: the nursery tree and its tasks."""
