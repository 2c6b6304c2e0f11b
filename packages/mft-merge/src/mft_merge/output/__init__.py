"""What a merge writes: shards, configs, tokenizer and record, in a staging directory until all is done."""
