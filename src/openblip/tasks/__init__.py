"""Steps of training: a model with its objectives, unaware of the loop."""
