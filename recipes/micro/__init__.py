"""A Stable Diffusion of a few megabytes, and the world of drawn shapes it was trained on."""
