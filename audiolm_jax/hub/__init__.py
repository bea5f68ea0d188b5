"""Other people's checkpoints without torch: download, read, write."""
