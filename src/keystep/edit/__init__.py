"""Skills inside models: found, moved, removed and added by changing the weights of a Hugging Face checkpoint."""
