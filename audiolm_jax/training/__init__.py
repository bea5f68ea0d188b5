"""The train step, the loop around it, optimizer, metrics, workdir, processes."""
