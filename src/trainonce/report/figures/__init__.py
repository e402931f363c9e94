"""The report's figures: each computes its numbers and draws them."""
