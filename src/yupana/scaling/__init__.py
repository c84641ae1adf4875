"""Scaling laws: published ones, fits to measured points, predictions, and plans from hardware and time."""
