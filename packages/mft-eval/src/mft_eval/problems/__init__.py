"""Problems of every shape, read into one value, and the prompts made from them."""
