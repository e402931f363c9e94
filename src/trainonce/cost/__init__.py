"""What a subnet costs: multiply-accumulates and parameters, activations at their peak, file size. Not latency."""
