"""Files of tensors, checkpoints, published weights, and what a config needs."""
