"""The idea itself: who writes the next token, and how the pen is handed over."""
