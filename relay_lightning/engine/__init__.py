"""Models as token engines: token ids in, logits out, one cache slot per row."""
