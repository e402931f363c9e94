"""Many runs planned together: a study as a value, running it, concluding it; and a module for each built-in study."""
