"""The laboratory: measures of what subnets do to each other, and studies of many runs."""
