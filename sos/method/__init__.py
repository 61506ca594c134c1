"""The method of the paper, readable in one sitting; it knows tensors and nothing of files."""
