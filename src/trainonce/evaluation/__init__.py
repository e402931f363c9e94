"""Extract, recalibrate, score: one subnet, many that begin alike, a population. Changes nothing that it evaluates."""
