"""Images with captions: found, checked and counted without torch; made into batches of latents with it."""
