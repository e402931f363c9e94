"""Many runs planned together: their designs, running them, conclusions."""
