"""Figures: `*_info()` computes what a figure shows, `draw_*()` draws it."""
