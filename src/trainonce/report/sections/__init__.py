"""The report's sections: figures, and what they mean in words."""
