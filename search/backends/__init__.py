"""Who carries trials out: Ray Tune, or the same process. The only room that knows Ray."""
