"""Ways to adapt a trained model that leave its own weights as they are."""
