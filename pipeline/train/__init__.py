"""The arithmetic of training: pictures, noise, loss, and the optimizer of the new rows."""
