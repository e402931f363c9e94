"""What a subnet's directory holds, and a score of it."""

FILES = ["README.md", "config.json", "model.py", "model.safetensors"]
SCORE = {"top1": 12.5, "loss": 2.0, "images": 30}
