"""Images with captions: found, checked and counted without torch; batches of latents with it."""
