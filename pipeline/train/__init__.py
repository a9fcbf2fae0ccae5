"""The arithmetic of training: images, noise, loss, and the optimizer of the new rows."""
