"""A comparison of strategies in resumable stages, and its report."""
