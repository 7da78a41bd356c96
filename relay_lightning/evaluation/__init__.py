"""Measuring what a student and a teacher can do: alone, together, and against routers that guess."""
