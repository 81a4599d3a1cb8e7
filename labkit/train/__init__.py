"""The one training step, the loop around it, the tasks, and the embedded model's pre-training."""
