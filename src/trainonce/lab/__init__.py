"""The laboratory: measures of interference, studies of many runs, and what can be concluded from them."""
