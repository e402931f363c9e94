"""What is done on a run as a whole: a fit within a time, checking files, publishing."""
