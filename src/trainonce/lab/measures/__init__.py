"""What subnets do to each other, one measure a file. Comparing trainings is for `studies`."""
