"""What runs the trials: Ray Tune, or this process. The only package that knows Ray."""
