"""Loading models and telling what they are."""
