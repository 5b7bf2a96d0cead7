"""Prepared data: WebDataset shards with an index, and the loader of a logical shard."""
